"""The design of an experiment: which models, which observations, which rows. Running, planning and verifying share it.

A design is made of comparisons, one for each row but for the metric. Requests follow from them: each model once, with
all the queries that it is observed on. When a design is made ahead of time (``Experiment.design(ahead=True)``),
selections that are not known yet are counted instead of made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bench.contracts import Method
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.experiments.evaluation import Comparison
from bench.retraining.ledger import Request

Selections = Mapping[Method, Mapping[tuple[str, int], tuple[int, ...]]]
"""The top K of each method, as indices, by query and K."""
Controls = Mapping[str, tuple[Query, ...]]
"""The control queries of each query, by its id."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """What an experiment compares.

    Attributes:
        comparisons: one for each row but for the metric.
        selections: what they rest on, where methods were asked.
        unscored: queries that a method must score before its comparisons are known; empty unless made ahead.
        unknown: how many comparisons will follow from these.
        later: models that those will need beyond their own.
        skipped, failures: methods that cannot run here, or failed, with the reason.
    """

    comparisons: Sequence[Comparison]
    selections: Selections = field(default_factory=dict)
    unscored: Mapping[Method, Sequence[Query]] = field(default_factory=dict)
    unknown: int = 0
    later: Sequence[TrainingJob] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Which models, which observations, which rows.

    Attributes:
        queries: of the experiment; where made ahead, stand-ins for those that are not synthesized yet.
        controls: of each of them.
        chosen: what is compared.
        complete: whether all queries are synthesized.
    """

    queries: Sequence[Query]
    controls: Controls
    chosen: Chosen
    complete: bool = True

    @cached_property
    def requests(self) -> list[Request]:
        """Each model once, with the queries that it is compared on; originals first, as everything needs them."""
        comparisons = self.chosen.comparisons
        wanted: dict[TrainingJob, tuple[dict[str, Query], dict[str, Query]]] = {}
        jobs = [(each.original, each) for each in comparisons] + [(each.retrained, each) for each in comparisons]
        for job, comparison in jobs:
            queries, controls = wanted.setdefault(job, ({}, {}))
            queries[comparison.query.id] = comparison.query
            controls.update({query.id: query for query in comparison.controls})
        found = [Request(job, tuple(some.values()), tuple(others.values())) for job, (some, others) in wanted.items()]
        return found + [Request(job, tuple(self.queries)) for job in self.chosen.later if job not in wanted]
