"""Part change: did the portrait lose what the query is about, and did it keep the rest?

    part_change  = share of the query's own parts that the two models' images show differently
    other_change = share of all other parts that they show differently

A part is shown as the probe reads it (``bench.pretrained.probe``), from the images that both models make of the same
noise and prompt. The own parts of a query of the study are the rare ones that it was chosen to show; of another query,
those that its prompt asks for. A mean over queries is a share of portraits: "7 of 8 lose their hat".

Reference: ours; it is arXiv 2406.09408, equation 3, with d = whether a named part differs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from bench.contracts import Metric
from bench.data.face_queries import asked_parts, rare_parts
from bench.diffusion.observations import Observation, Regeneration
from bench.diffusion.queries import Query
from bench.pretrained.probe import embedded_probe
from bench.registry import register_metric


class _Parts(Metric):
    """What both share."""

    unit: ClassVar[str] = "share of parts"
    observation: ClassVar[Observation] = Regeneration()

    def sources(self) -> dict[str, str]:
        """The probe with the hash of its weights."""
        return {"probe": embedded_probe().digest}

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """From 0 to 1; raises InvalidInput for images that the probe cannot read."""
        before, after = embedded_probe().parts(torch.stack([original, retrained]))
        own = {part for part, _ in rare_parts(query.prompt, query.seed)} or set(asked_parts(query.prompt))
        chosen = self.chosen(own, set(before))
        return sum(before[part] != after[part] for part in chosen) / len(chosen) if chosen else float("nan")

    @abstractmethod
    def chosen(self, own: set[str], every: set[str]) -> set[str]:
        """The parts that are compared."""


@register_metric
class PartChange(_Parts):
    """The query's own parts."""

    name: ClassVar[str] = "part_change"
    summary: ClassVar[str] = "share of the query's own rare parts that the portrait loses, by the probe"

    def chosen(self, own: set[str], every: set[str]) -> set[str]:
        """Those of the query."""
        return own & every


@register_metric
class OtherChange(_Parts):
    """All other parts."""

    name: ClassVar[str] = "other_change"
    summary: ClassVar[str] = "share of all other parts that the portrait loses, by the probe"

    def chosen(self, own: set[str], every: set[str]) -> set[str]:
        """Those that the query is not about."""
        return every - own
