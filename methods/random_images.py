"""Random: a seeded random permutation of the training images for each query, the floor of every comparison.

    τ(ẑ, z_i) = rank of i in a permutation keyed by (study seed, query)

Reference: arXiv 2406.09408, section 5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.contracts import FLOOR, AttributionContext, Method
from bench.diffusion.queries import Query
from bench.foundation import seeds
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Chance.

    Attributes:
        draw: another number gives other permutations.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "a seeded random permutation for each query"
    role: ClassVar[str] = FLOOR
    self_rank: ClassVar[str] = "chance knows no image"

    draw: int = 0

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Ranks from 0 to N − 1."""
        ranks = torch.empty(len(queries), len(context.dataset))
        for row, query in zip(ranks, queries, strict=True):
            stream = seeds.generator("random", context.seed, self.draw, query.id, query.prompt)
            row[context.dataset.by_id] = torch.from_numpy(stream.permutation(len(row))).float()
        return ranks
