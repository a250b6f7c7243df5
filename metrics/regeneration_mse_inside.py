"""Regeneration error inside a region: how far that part of the leave-K-out model's image is from the original's.

    ΔG_M = mean over the pixels of the region of (G_θ0(ε, c) − G_θ^−K(ε, c))²,   images in [−1, 1]

Without a region it is ``regeneration_mse``. Reference: arXiv 2406.09408, equation 3 with d = mean squared error;
measuring in a region is ours. Higher is better.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.observations import Observation, Regeneration
from bench.diffusion.queries import Query
from bench.diffusion.regions import inside_image
from bench.registry import register_metric


@register_metric
class RegenerationMseInside(Metric):
    """Mean squared error between the two models' images in the query's region."""

    name: ClassVar[str] = "regeneration_mse_inside"
    summary: ClassVar[str] = "mean squared error between the query's images by both models, inside its region"
    unit: ClassVar[str] = "squared pixel value, images in [-1, 1]"
    observation: ClassVar[Observation] = Regeneration()
    honours_regions: ClassVar[bool] = True

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Mean over pixels of the squared difference."""
        return float(inside_image((retrained.double() - original.double()).square(), query.region).mean())
