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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

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
from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import Interval, resampled_bounds
from bench.studies import Study

TABLE_HEAD = ("method", "LDS [95 % interval over subsets]", "subsets")
MIN_SUBSETS = 10
"""Fewer give no interval."""
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
        """Score, and correlate sums of scores with losses."""
        queries, subsets = design.queries, self.kept
        scores, left_out = self._scores(workspace, queries)
        losses = _losses(measured.rows, len(subsets), [query.id for query in queries])
        record = self._record_subsets(workspace.store, subsets)
        there = ~np.isnan(losses).any(1)
        lines, found = [], []
        for method, matrix in scores.items():
            sums = np.stack([matrix[:, list(kept)].sum(1) for kept in subsets])
            own = spearman(sums[there], -losses[there])
            lines.append((self.label(method), *subset_interval(sums[there], -losses[there]), int(there.sum())))
            for query, value in zip(queries, own, strict=True):
                found.append(self._row(method, query, float(value), int(there.sum()), record))
        table = pd.DataFrame(lines, columns=["method", "lds", "low", "high", "subsets"])
        table = table.sort_values("lds", ascending=False, ignore_index=True)
        frame = tables.LDS.merge(workspace.store, pd.DataFrame(found))
        write_whole(workspace.store.path(folder.LDS_TABLE), markdown(table, len(queries), self.seeds).encode())
        return Datamodels(
            table=table,
            frame=frame,
            skipped=left_out.skipped,
            failures=left_out.failed,
            failed_trainings=sorted(set(measured.failed.values())),
        )

    def _scores(self, workspace: Workspace, queries: Sequence[Query]) -> tuple[dict[Method, np.ndarray], LeftOut]:
        """τ of each method, queries × images, and the methods that have none."""
        scores: dict[Method, np.ndarray] = {}
        left_out = LeftOut(workspace)
        for method in self.with_floors:
            with left_out.alone(self.label(method), f"method-{method.name}"):
                workspace.require(method)
                scores[method] = workspace.scores(method, queries).matrix.double().numpy()
        return scores, left_out

    def _record_subsets(self, store: Store, drawn: Sequence[Sequence[int]]) -> str:
        """Keep the hash of every subset's ids; returns the digest of all of them."""
        ids = self.study.dataset.ids
        hashes = [digest_of(sorted(ids[index] for index in kept)) for kept in drawn]
        digest = digest_of(hashes)
        facts = {"study_digest": self.study.digest, "share": self.share, "seed": self.study.seed, "subsets": hashes}
        store.write_record(folder.subsets(digest), facts)
        return digest

    def _row(self, method: Method, query: Query, value: float, count: int, digest: str) -> dict[str, object]:
        return {
            "study": self.study.name,
            "study_digest": self.study.digest,
            "method": self.label(method),
            "method_digest": method.digest,
            "query": query.id,
            "query_digest": query.digest,
            "spearman": float(value),
            "subsets": count,
            "subsets_digest": digest,
            "seeds": self.seeds,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Datamodels(ReportOnMethods):
    """What the test found.

    Attributes:
        table: method, mean over queries of LDS with its interval over subsets, number of subsets.
        frame: one row for each method and query, of all runs in the folder.
    """

    table: pd.DataFrame
    frame: pd.DataFrame

    def tables(self) -> list[Table]:
        """LDS of each method."""
        return [(TABLE_HEAD, table_cells(self.table))]


def subset(study: Study, index: int, share: float) -> tuple[int, ...]:
    """The images of one random subset, ascending; a function of study seed, index, size and ids."""
    size = round(share * len(study.dataset))
    return drawn(study.dataset, size, "datamodel-subset", study.seed, index, size)


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation of each column (query) over rows (subsets); NaN where a column is constant."""
    first, second = (stats.rankdata(values, axis=0) for values in (one, other))
    first, second = first - first.mean(0), second - second.mean(0)
    scale = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (first * second).sum(0) / scale
    return found


def subset_interval(sums: np.ndarray, targets: np.ndarray, *, seed: int = 0) -> Interval:
    """Mean over queries of Spearman's ρ with its ``resampled_bounds`` over subsets.

    NaN bounds for fewer than MIN_SUBSETS subsets.

    Args:
        sums, targets: subsets × queries.
    """
    mean = _mean(spearman(sums, targets)) if len(sums) > 1 else float("nan")
    if len(sums) < MIN_SUBSETS:
        return Interval(mean, float("nan"), float("nan"))
    low, high = resampled_bounds(lambda chosen: _mean(spearman(sums[chosen], targets[chosen])), len(sums), seed=seed)
    return Interval(mean, low, high)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _losses(rows: Sequence[Row], subsets: int, queries: Sequence[str]) -> np.ndarray:
    """Subsets × queries, the loss change as a mean over seeds; NaN where a training failed."""
    frame = frame_of(rows)
    own = frame[frame["metric"] == METRIC]
    whole = own.assign(subset=own["method_digest"].astype(int))
    table = whole.pivot_table(
        index="subset", columns="query", values="value", aggfunc=lambda values: values.mean(skipna=False), dropna=False
    )
    found: np.ndarray = table.reindex(index=range(subsets), columns=list(queries)).to_numpy(float)
    return found


def markdown(table: pd.DataFrame, queries: int, seeds_each: int) -> str:
    """The table, with what it is a mean over."""
    head = (
        f"Linear datamodeling score, mean over {queries} queries, {seeds_each} training(s) a subset; secondary to "
        "leave-K-out."
    )
    return f"{head}\n\n{as_markdown((TABLE_HEAD, table_cells(table)))}"


def table_cells(table: pd.DataFrame) -> list[list[str]]:
    """The table's cells as text."""
    return [
        [str(line.method), f"{line.lds:+.3f} {_interval(line.low, line.high)}", str(line.subsets)]
        for line in table.itertuples()
    ]


def _interval(low: float, high: float) -> str:
    return f"(fewer than {MIN_SUBSETS} subsets: no interval)" if pd.isna(low) else f"[{low:+.3f}, {high:+.3f}]"
