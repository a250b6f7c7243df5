"""Specificity: the loss change of the query beyond that of unrelated queries.

    S = ΔL(ẑ) − mean over control queries ẑ' of ΔL(ẑ'),   ΔL(ẑ) = L(ẑ, θ^−K) − L(ẑ, θ0)

Removing images may damage a model altogether; then every query's loss rises, and ``loss_change`` calls that
attribution. Specificity is near zero for general damage and equals the loss change where the query alone is forgotten.
Control queries have other prompts (``Study.controls``); L is that of ``loss_change``.

OURS: the paper (arXiv 2406.09408) measures the query alone. Higher is better.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.observations import Observation, QueryLoss
from bench.diffusion.queries import Query
from bench.registry import register_metric


@register_metric
class Specificity(Metric):
    """Rise of the query's loss beyond the rise of control queries' losses."""

    name: ClassVar[str] = "specificity"
    summary: ClassVar[str] = "rise of the query's DDPM loss minus the mean rise for queries with other prompts"
    unit: ClassVar[str] = "mean squared error of the predicted noise"
    observation: ClassVar[Observation] = QueryLoss(stride=5)
    relative_to_controls: ClassVar[bool] = True

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Mean over timesteps of the differences, for a query or a control."""
        return float((retrained.double() - original.double()).mean())
