"""Loss change inside a region: how much worse the leave-K-out model represents that part of the query.

    ΔL_M = L_M(ẑ, θ^−K) − L_M(ẑ, θ0),   L_M averaged over the region's latent cells and timesteps 0, 5, …, 995

The same noise for both models. Without a region it is ``loss_change``, to rounding. Reference: arXiv 2406.09408,
equation 2, under the mask of its section 5.1; measuring in a region is ours. Higher is better.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.observations import Observation, QueryLossMap
from bench.diffusion.queries import Query
from bench.diffusion.regions import inside
from bench.registry import register_metric


@register_metric
class LossChangeInside(Metric):
    """Rise of the DDPM loss in the query's region."""

    name: ClassVar[str] = "loss_change_inside"
    summary: ClassVar[str] = "rise of the query's DDPM loss inside its region when the images are left out"
    unit: ClassVar[str] = "mean squared error of the predicted noise"
    observation: ClassVar[Observation] = QueryLossMap(stride=5)
    honours_regions: ClassVar[bool] = True

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Mean over cells of the differences."""
        return float(inside(retrained.double() - original.double(), query.region).mean())
