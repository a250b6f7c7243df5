"""Loss change: how much worse the leave-K-out model represents the query.

    ΔL = L(ẑ, θ^−K) − L(ẑ, θ0),   L averaged over timesteps 0, 5, …, 995, the same noise for both models

Reference: arXiv 2406.09408, equation 2. Higher is better: the removed images mattered.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.observations import Observation, QueryLoss
from bench.diffusion.queries import Query
from bench.registry import register_metric


@register_metric
class LossChange(Metric):
    """Rise of the query's DDPM loss."""

    name: ClassVar[str] = "loss_change"
    summary: ClassVar[str] = "rise of the query's DDPM loss when the images are left out"
    unit: ClassVar[str] = "mean squared error of the predicted noise"
    observation: ClassVar[Observation] = QueryLoss(stride=5)

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Mean over timesteps of the differences."""
        return float((retrained.double() - original.double()).mean())
