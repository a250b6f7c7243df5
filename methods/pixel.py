"""Pixel: cosine similarity of flattened pixel values, the larger of the image and its mirror image.

    τ(ẑ, z_i) = max over flips f of ⟨x̂, f(x_i)⟩ / (‖x̂‖ ‖x_i‖),   x in [−1, 1]

Reference: arXiv 2406.09408, section 5.1. The maximum over flips follows section 3 of the protocol of the field:
training saw both.
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
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Pixel(Method):
    """Similarity in pixel space."""

    name: ClassVar[str] = "pixel"
    summary: ClassVar[str] = "cosine similarity of pixels, max over flips"

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Cosines in [−1, 1]."""
        generated = context.model.autoencoder.decode(torch.stack([query.latent for query in queries]))
        flat = functional.normalize(generated.flatten(1), dim=1)
        sides = [
            flat @ functional.normalize(context.dataset.pixels(flipped=flipped).flatten(1), dim=1).T
            for flipped in (False, True)
        ]
        return torch.maximum(*sides)
