"""The linear datamodeling score (LDS): do sums of scores tell how models trained on random subsets will do?

    LDS(τ, ẑ) = Spearman over subsets S_1 … S_M of ( Σ_{i ∈ S_m} τ(ẑ, z_i), −L(ẑ, θ_{S_m}) ),   θ_S = A(S)

S_m are random halves of D; L is the mean over timesteps (``loss_change``) and over the training seeds of the subset.
A higher score says that images count for more, so a subset with a higher sum should have the lower loss: +1 is perfect,
0 is chance. The mean over queries has a bootstrap interval over subsets.

Secondary: it assumes that influence adds up, which similarity methods and unlearning do not claim. Read it beside
leave-K-out, never instead. Reference: Park et al., 2023 (arXiv 2303.14186), section 2. OURS: subsets train for as many
steps as D (step-matched, as everywhere here), paired by seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts import Method, Metric
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.evaluation import Comparison, evaluation_seed
from bench.experiments.experiment import Experiment, Measured, check_count, with_floors
from bench.experiments.left_out import LeftOut
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.records import folder, tables
from bench.records.names import MethodName
from bench.records.rows import Row, frame_of
from bench.records.store import Store, write_whole
from bench.registry import metrics as metric_registry
from bench.registry import named
from bench.report.datamodels import Datamodels
from bench.studies import Study

METRIC = "loss_change"
SUBSET = "random subset"
MAX_SUBSETS = 100_000


@dataclass(frozen=True, kw_only=True)
class DatamodelTest(Experiment["Datamodels"]):
    """Models trained on random subsets, each compared with the model of its seed that was trained on all of D.

    The comparison subtracts the same loss from all subsets of a seed, so it changes no rank.

    Attributes:
        methods: whose scores are summed; ``random`` is added where it is missing.
        subsets: how many.
        share: of D in each.
        seeds: trainings of each subset to average over.
    """

    metrics: Sequence[Metric] = field(default_factory=lambda: [metric_registry.create(METRIC)])
    methods: Sequence[Method]
    subsets: int = 64
    share: float = 0.5
    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("seeds", self.seeds)
        if not 3 <= self.subsets <= MAX_SUBSETS:
            raise InvalidInput(
                f"--subsets {self.subsets}: 3 to {MAX_SUBSETS} are expected, for ranks to be correlated."
            )
        if not 0 < self.share * len(self.study.dataset) < len(self.study.dataset):
            raise InvalidInput(f"A share of {self.share}: between 0 and 1 is expected.")
        if METRIC not in {metric.name for metric in self.metrics}:
            raise InvalidInput(f"The linear datamodeling score needs the metric {METRIC}.")

    def vet(self, workspace: Workspace) -> None:
        """Try every method, so that one that is broken costs no training."""
        workspace.vet(self.with_floors)

    def originals(self) -> list[TrainingJob]:
        """On all of D, one for each seed."""
        return [TrainingJob((), evaluation_seed(self.study, seed)) for seed in range(self.seeds)]

    @cached_property
    def kept(self) -> list[tuple[int, ...]]:
        """The images of each subset."""
        return [subset(self.study, index, self.share) for index in range(self.subsets)]

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Every subset under every seed, for every query."""
        found = []
        for index, kept in enumerate(self.kept):
            left_out = tuple(sorted(set(range(len(self.study.dataset))) - set(kept)))
            for original in self.originals():
                found += [
                    Comparison(
                        named=MethodName(SUBSET),
                        method_digest=str(index),
                        query=query,
                        k=len(left_out),
                        retrained=TrainingJob(left_out, original.seed),
                        original=original,
                        score_seconds=0.0,
                        controls=controls.get(query.id, ()),
                    )
                    for query in queries
                ]
        if not ahead:
            return Chosen(comparisons=found)
        lost = LeftOut(workspace, ahead)
        unscored = self.unscored(workspace, lost, self.with_floors, queries)
        return Chosen(comparisons=found, unscored=unscored, skipped=lost.skipped, failures=lost.failed)

    @property
    def with_floors(self) -> list[Method]:
        """The methods, with the floors."""
        return with_floors(self.methods)

    @property
    def facts(self) -> dict[str, Any]:
        """Subsets and seeds."""
        return {"subsets": self.subsets, "share": self.share, "seeds": self.seeds}

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> Datamodels:
        """Sum the scores of every subset; its report correlates them with the losses."""
        queries, subsets = design.queries, self.kept
        scores, left_out = self._scores(workspace, queries)
        changes = _changes(measured.rows, len(subsets), [query.id for query in queries])
        names = self._record_subsets(workspace.store, subsets)
        for method, matrix in scores.items():
            sums = np.stack([matrix[:, list(kept)].sum(1) for kept in subsets])
            lines = pd.DataFrame(self._lines(method, queries, names, sums, changes))
            tables.LDS.merge(workspace.store, lines)
        report = Datamodels(
            frame=tables.LDS.labelled(workspace.store),
            skipped=left_out.skipped,
            failures=left_out.failed,
            failed_trainings=sorted(set(measured.failed.values())),
        )
        table = workspace.store.path(folder.LDS_TABLE)
        write_whole(table, report.markdown().encode())
        workspace.store.list_digests([table])
        return report

    def _scores(self, workspace: Workspace, queries: Sequence[Query]) -> tuple[dict[Method, np.ndarray], LeftOut]:
        """τ of each method, queries × images, and the methods that have none."""
        scores: dict[Method, np.ndarray] = {}
        left_out = LeftOut(workspace)
        for method in self.with_floors:
            with left_out.alone(self.label(method), f"method-{method.name}"):
                workspace.require(method)
                scores[method] = workspace.scores(method, queries).matrix.double().numpy()
        return scores, left_out

    def _record_subsets(self, store: Store, drawn: Sequence[Sequence[int]]) -> list[str]:
        """Keep the hash of every subset's ids; returns the hashes."""
        ids = self.study.dataset.ids
        hashes = [digest_of(sorted(ids[index] for index in kept)) for kept in drawn]
        facts = {"study_digest": self.study.digest, "share": self.share, "seed": self.study.seed, "subsets": hashes}
        store.write_record(folder.subsets(digest_of(hashes)), facts)
        return hashes

    def _lines(
        self, method: Method, queries: Sequence[Query], subsets: Sequence[str], sums: np.ndarray, changes: np.ndarray
    ) -> list[dict[str, object]]:
        """A line for each subset and query.

        Args:
            sums, changes: subsets × queries.
        """
        shared = {
            "study": self.study.name, "study_digest": self.study.digest, **asdict(named(method, self.study.name)),
            "method_digest": method.digest, "seeds": self.seeds, "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        return [
            shared
            | {
                "query": query.id,
                "query_digest": query.digest,
                "subset": name,
                "sum": float(sums[row, column]),
                "change": float(changes[row, column]),
            }
            for row, name in enumerate(subsets)
            for column, query in enumerate(queries)
        ]


def subset(study: Study, index: int, share: float) -> tuple[int, ...]:
    """The images of one random subset, ascending; a function of study seed, index, size and ids."""
    size = round(share * len(study.dataset))
    return drawn(study.dataset, size, "datamodel-subset", study.seed, index, size)


def _changes(rows: Sequence[Row], subsets: int, queries: Sequence[str]) -> np.ndarray:
    """Subsets × queries, the loss change as a mean over seeds; NaN where a training failed."""
    frame = frame_of(rows)
    own = frame[frame["metric"] == METRIC]
    whole = own.assign(subset=own["method_digest"].astype(int))
    table = whole.pivot_table(
        index="subset", columns="query", values="value", aggfunc=lambda values: values.mean(skipna=False), dropna=False
    )
    found: np.ndarray = table.reindex(index=range(subsets), columns=list(queries)).to_numpy(float)
    return found
