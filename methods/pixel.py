"""Pixel: cosine similarity of flattened pixel values, the larger of the image and its mirror image.

    τ(ẑ, z_i) = max over flips f of ⟨x̂, f(x_i)⟩ / (‖x̂‖ ‖x_i‖),   x in [−1, 1]

Reference: arXiv 2406.09408, section 5.1. The maximum over flips follows section 3 of the protocol of the field:
training saw both.

A query with a region is compared inside its box alone, with the same place of every training image and of its mirror
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.diffusion.regions import Region, inside_image
from bench.registry import register_method

MOST_VALUES = 2**23
"""Pixel values that are in memory at a time: more than any study that ships has, and 170 images of 3×128×128. Blocks of
hundreds of megabytes do not fit into the gaps that others leave, so that the heap grows with each."""


@register_method
@dataclass(frozen=True, kw_only=True)
class Pixel(Method):
    """Similarity in pixel space."""

    name: ClassVar[str] = "pixel"
    summary: ClassVar[str] = "cosine similarity of pixels, max over flips"

    honours_regions: ClassVar[bool] = True

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Cosines in [−1, 1]."""
        generated = context.model.autoencoder.decode(torch.stack([query.latent for query in queries]))
        result = torch.empty(len(queries), len(context.dataset))
        for region in dict.fromkeys(query.region for query in queries):
            rows = [row for row, query in enumerate(queries) if query.region == region]
            result[rows] = self.similarity(context, generated[rows], region)
        return result

    def similarity(
        self, context: AttributionContext, generated: Float[Tensor, "queries c h w"], region: Region | None
    ) -> Float[Tensor, "queries images"]:
        """Cosines of the pixels in ``region``, the larger of both sides of an image."""

        def flat(pixels: Tensor) -> Tensor:
            return functional.normalize(inside_image(pixels, region).flatten(1), dim=1)

        made, dataset = flat(generated), context.dataset
        chunks = torch.arange(len(dataset)).split(max(1, MOST_VALUES // dataset.images[0].numel()))
        found = torch.empty(len(made), len(dataset))
        for chunk in chunks:
            sides = (made @ flat(dataset.pixels(chunk.tolist(), flipped=flipped)).T for flipped in (False, True))
            found[:, chunk] = torch.maximum(*sides)
        return found
