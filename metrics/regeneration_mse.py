"""Regeneration error: how far the leave-K-out model's image is from the original model's.

    ΔG = mean over elements of (G_θ0(ε, c) − G_θ^−K(ε, c))²,   images in [−1, 1], the same noise and prompt

Reference: arXiv 2406.09408, equation 3 with d = mean squared error. Higher is better: the image is lost.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.observations import Observation, Regeneration
from bench.diffusion.queries import Query
from bench.registry import register_metric


@register_metric
class RegenerationMse(Metric):
    """Mean squared error between the two models' images."""

    name: ClassVar[str] = "regeneration_mse"
    summary: ClassVar[str] = "mean squared error between the query's images by both models"
    unit: ClassVar[str] = "squared pixel value, images in [-1, 1]"
    observation: ClassVar[Observation] = Regeneration()

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Mean over pixels of the squared difference."""
        return float((retrained.double() - original.double()).square().mean())
