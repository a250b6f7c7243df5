"""Which group of training images made a picture possible? Each group is left out once, as the truth for all methods.

    truth(ẑ, g) = the loss change of ẑ in a model trained without all images of the group g (paired by seed)
    score(ẑ, g) = an aggregate of a method's scores of the images of g: their sum, their mean, or the group's share of
                  the method's top K

The groups are the values of the data set's concepts, styles or known parts, so that a handful of trainings serves every
method and query. The aggregate of each method is chosen on held-out queries, which the same models are observed on.
A method agrees with the truth by Spearman's ρ over groups and by whether it ranks the same group first, both for
each query.

Reference: the question of GUDA, arXiv 2601.22651, asked of methods that score single images; truth by retraining.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts import Method, Metric
from bench.data.dataset import Dataset
from bench.diffusion.queries import Query, QuerySpec
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments.datamodels import METRIC
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.evaluation import Comparison, evaluation_seed
from bench.experiments.experiment import Experiment, Measured, check_count, with_floors
from bench.experiments.left_out import LeftOut
from bench.experiments.selection import top_k
from bench.experiments.workspace import Workspace
from bench.records import folder, tables
from bench.records.names import MethodName
from bench.records.rows import frame_of
from bench.records.store import write_whole
from bench.registry import metrics as metric_registry
from bench.registry import named
from bench.report.groups import GroupsReport, agreement_of
from bench.studies import HELD_OUT

GROUP = "group left out"
CONCEPT, STYLE, PARTS = "concept", "style", "parts"
LEAST_GROUPS = 3
"""Fewer have no rank correlation."""
Members = Mapping[str, tuple[int, ...]]
"""Indices of the images of each group, ascending, by its name."""

AGGREGATES: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "mean": lambda scores, images, top: float(scores[images].mean()),
    "sum": lambda scores, images, top: float(scores[images].sum()),
    "share of the top K": lambda scores, images, top: len(np.intersect1d(images, top)) / len(top),
}
"""A group's score from the scores of all images, the group's indices and those of the top K."""


def groups_of(dataset: Dataset, by: Sequence[str], largest: int | None = None) -> Members:
    """The groups of images that share a value.

    Args:
        dataset: whose images.
        by: "concept", "style", parts of the images, or "parts" for all of these.
        largest: groups of more images are left out; by default those of more than half of all.

    Returns:
        By "part: value"; images that lack a part ("") are in no group. Raises InvalidInput for an unknown name, and
        where fewer than three groups are left.
    """
    known = {CONCEPT: dataset.concepts, STYLE: dataset.styles, **dataset.parts}
    wanted = [name for one in by for name in (dataset.parts if one == PARTS else [one])]
    for name in wanted:
        if name not in known:
            raise InvalidInput(f"--by {name}: one of {', '.join(known)} is expected, or '{PARTS}' for all known parts.")
    if by and not wanted:
        raise InvalidInput(f"--by {PARTS}: the parts of the images of {dataset.name} are not known.")
    most = len(dataset) // 2 if largest is None else largest
    found: dict[str, tuple[int, ...]] = {}
    for name in dict.fromkeys(wanted):
        for value in sorted(set(known[name]) - {""}):
            images = tuple(index for index, own in enumerate(known[name]) if own == value)
            if len(images) <= most:
                found[f"{name}: {value}"] = images
    if len(found) < LEAST_GROUPS:
        raise InvalidInput(
            f"--by {', '.join(by) or 'nothing'}: {len(found)} groups of at most {most} images in {dataset.name}; at "
            f"least {LEAST_GROUPS} are needed to rank them. Name another part, or give a larger --largest."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class GroupTest(Experiment[GroupsReport]):
    """Models trained without one group each, compared with the model of their seed that was trained on all of D.

    Attributes:
        methods: whose scores are aggregated; floors are added where they are missing.
        by: what groups the images (``groups_of``).
        largest: the most images that a group may have.
        seeds: trainings without each group to average over.
    """

    metrics: Sequence[Metric] = field(default_factory=lambda: [metric_registry.create(METRIC)])
    methods: Sequence[Method]
    by: Sequence[str] = (CONCEPT,)
    largest: int | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("seeds", self.seeds)
        self.members  # noqa: B018 - checks the names

    @cached_property
    def members(self) -> Members:
        """The images of each group."""
        return groups_of(self.study.dataset, self.by, self.largest)

    @property
    def grouped(self) -> str:
        """The groups in words, as the table keeps them."""
        return ", ".join(self.by) + ("" if self.largest is None else f", at most {self.largest} images")

    @property
    def specs(self) -> list[QuerySpec]:
        """The reported queries, and as many held-out ones where there are so many."""
        held_out = min(self.query_count, len(self.study.held_out_prompts))
        return self.study.queries(self.query_count) + (self.study.held_out_queries(held_out) if held_out else [])

    @property
    def with_floors(self) -> list[Method]:
        """The methods, with the floors."""
        return with_floors(self.methods)

    @property
    def facts(self) -> dict[str, Any]:
        """Groups and seeds."""
        return {"groups": self.grouped, "seeds": self.seeds}

    def vet(self, workspace: Workspace) -> None:
        """Try every method, so that one that is broken costs no training."""
        workspace.vet(self.with_floors)

    def originals(self) -> list[TrainingJob]:
        """On all of D, one for each seed."""
        return [TrainingJob((), evaluation_seed(self.study, seed)) for seed in range(self.seeds)]

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Every group under every seed, for every query."""
        found = [
            Comparison(
                named=MethodName(GROUP),
                method_digest=name,
                query=query,
                k=len(images),
                retrained=TrainingJob(images, original.seed),
                original=original,
                score_seconds=0.0,
            )
            for name, images in self.members.items()
            for original in self.originals()
            for query in queries
        ]
        lost = LeftOut(workspace, ahead)
        unscored = self.unscored(workspace, lost, self.with_floors if ahead else (), queries)
        return Chosen(comparisons=found, unscored=unscored, skipped=lost.skipped, failures=lost.failed)

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> GroupsReport:
        """Score, aggregate, and keep each group's score beside its truth."""
        changes = frame_of(measured.rows).pivot_table(
            index="query", columns="method_digest", values="value", aggfunc=lambda own: own.mean(skipna=False)
        )
        lost = LeftOut(workspace)
        for method in self.with_floors:
            with lost.alone(self.label(method), f"method-{method.name}"):
                workspace.require(method)
                scores = workspace.scores(method, design.queries).matrix.double()
                lines = self._lines(method, design.queries, scores.numpy(), self._tops(scores), changes)
                tables.GROUPS.merge(workspace.store, lines)
        report = GroupsReport(
            frame=tables.GROUPS.labelled(workspace.store),
            skipped=lost.skipped,
            failures=lost.failed,
            failed_trainings=sorted(set(measured.failed.values())),
        )
        table = workspace.store.path(folder.GROUPS_TABLE)
        write_whole(table, report.markdown().encode())
        workspace.store.list_digests([table])
        return report

    def _tops(self, scores: Any) -> list[np.ndarray]:
        k = self.study.middle_budget
        return [np.array(top_k(row, self.study.dataset.ids, k)) for row in scores]

    def _lines(
        self,
        method: Method,
        queries: Sequence[Query],
        scores: np.ndarray,
        tops: Sequence[np.ndarray],
        changes: pd.DataFrame,
    ) -> pd.DataFrame:
        """A line for each query and group, by the aggregate that agrees best on held-out queries."""
        facts = asdict(named(method, self.study.name))
        of_all: dict[str, pd.DataFrame] = {}
        for aggregate, score_of in AGGREGATES.items():
            of_all[aggregate] = pd.DataFrame(
                {
                    "study": self.study.name, "study_digest": self.study.digest, **facts,
                    "method_digest": method.digest, "groups": self.grouped, "query": query.id,
                    "query_digest": query.digest, "held_out": query.id.startswith(HELD_OUT), "group": name,
                    "images": len(images), "change": changes.loc[query.id].get(name, float("nan")),
                    "score": score_of(row, np.array(images), top), "aggregate": aggregate, "seeds": self.seeds,
                    "date": time.strftime("%Y-%m-%d", time.gmtime()),
                }
                for query, row, top in zip(queries, scores, tops, strict=True)
                for name, images in self.members.items()
            )  # fmt: skip
        rhos = {
            aggregate: agreement_of(lines[lines["held_out"]])["spearman"].mean() for aggregate, lines in of_all.items()
        }
        known = {aggregate: rho for aggregate, rho in rhos.items() if not np.isnan(rho)}
        return of_all[max(known, key=known.__getitem__) if known else next(iter(of_all))]
