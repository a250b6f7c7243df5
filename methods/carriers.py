"""Carriers: the training images that carry the query's rare parts, the ceiling where the parts of images are known.

    τ(ẑ, z_i) = number of the query's rare (part, value) pairs that z_i has + a random number in [0, 1)

It reads what no method may read: the columns of parts, and for the study's own queries which rare values each was
chosen to show (``bench.data.face_queries``). Of another prompt, the pair with the fewest carriers of those that it asks
for. The rest of the top K, where K is more than there are carriers, is random, keyed by the query.

Of a query with a region, the pairs of the parts that lie inside it: those that the prompt asks for, and the rare ones.
A box that holds no part shows nothing that is known, and the order is random.

Ours. It is measured, not assumed: whether these are the images that matter is for retraining to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.chance import tie_breaks
from bench.contracts import CEILING, AttributionContext, Method
from bench.data.dataset import Dataset
from bench.data.face_queries import asked_parts, rare_parts
from bench.diffusion.queries import Query
from bench.errors import Unavailable
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Carriers(Method):
    """Images that carry what is rare in the query."""

    name: ClassVar[str] = "carriers"
    summary: ClassVar[str] = "images that carry the query's rare parts, by the columns that no method may read"
    role: ClassVar[str] = CEILING
    needs: ClassVar[str] = "a data set whose parts are known, such as faces"
    self_rank: ClassVar[str] = "carriers are equals in random order"
    honours_regions: ClassVar[bool] = True

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Below 1 for images without the rare parts."""
        dataset = context.dataset
        if not dataset.parts:
            raise Unavailable(f"the data set '{dataset.name}' does not know the parts of its images")
        scores = torch.zeros(len(queries), len(dataset), dtype=torch.float64)
        for row, query in zip(scores, queries, strict=True):
            row += tie_breaks(context, query, "carriers")
            for part, value in _pairs(dataset, query):
                row[dataset.carriers(part, value)] += 1
        return scores.float()


def _pairs(dataset: Dataset, query: Query) -> Iterable[tuple[str, str]]:
    """(part, value) of what the query is about: what is rare in it, or what its region shows."""
    rare = rare_parts(query.prompt, query.seed)
    if query.region is None:
        return rare or _rarest(dataset, query.prompt)
    shown = dict(rare) | asked_parts(query.prompt)
    return [(part, value) for part, value in shown.items() if query.region.holds(dataset.boxes[part])]


def _rarest(dataset: Dataset, prompt: str) -> list[tuple[str, str]]:
    """The (part, value) with the fewest carriers of those that the prompt asks for; none where it asks for none."""
    asked = [pair for pair in asked_parts(prompt).items() if dataset.carriers(*pair)]
    return [min(asked, key=lambda pair: len(dataset.carriers(*pair)))] if asked else []
