"""Specificity of regeneration: the regeneration error of the query beyond that of unrelated queries.

    S = ΔG(ẑ) − mean over control queries ẑ' of ΔG(ẑ'),   ΔG = mean squared error between both models' images

The same as ``specificity`` with ``regeneration_mse`` in place of the loss change. Every control is generated again by
every model, which costs the sampler's steps for each.

OURS. Higher is better.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.observations import Observation, Regeneration
from bench.diffusion.queries import Query
from bench.registry import register_metric


@register_metric
class RegenerationSpecificity(Metric):
    """Squared change of the query's image beyond that of control queries' images."""

    name: ClassVar[str] = "regeneration_specificity"
    summary: ClassVar[str] = "squared change of the query's image minus the mean change for queries with other prompts"
    unit: ClassVar[str] = "squared pixel value, images in [-1, 1]"
    observation: ClassVar[Observation] = Regeneration()
    relative_to_controls: ClassVar[bool] = True

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Mean over pixels of the squared difference, for a query or a control."""
        return float((retrained.double() - original.double()).square().mean())
