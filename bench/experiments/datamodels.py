"""The linear datamodeling score (LDS): do sums of scores tell how models trained on random subsets will do?

    LDS(τ, ẑ) = Spearman over subsets S_1 … S_M of ( Σ_{i ∈ S_m} τ(ẑ, z_i), −L(ẑ, θ_{S_m}) ),   θ_S = A(S)

S_m are random halves of D; L averages ``query_loss@5`` over timesteps and the training seeds of the subset. A higher
score says that images count for more, so a subset with a higher sum should have the lower loss: +1 is perfect, 0 is
chance. The mean over queries has a bootstrap interval over subsets.

Secondary: it assumes that influence adds up, which similarity methods and unlearning do not claim. Read it beside
leave-K-out, never instead. Reference: Park et al., 2023 (arXiv 2303.14186), section 2. OURS: subsets train for as many
steps as D (step-matched, as everywhere here), paired by seed.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bench.contracts import Method
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.errors import BenchError, InvalidInput
from bench.experiments.evaluation import evaluation_seed
from bench.experiments.leave_k_out import Run
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.foundation.machine import compute_threads
from bench.foundation.progress import Progress
from bench.records import folder
from bench.records.store import Store, write_json, write_whole
from bench.report.statistics import Interval, resampled_bounds
from bench.retraining.ledger import Request
from bench.studies import Study

KEYS = ["study_digest", "method_digest", "query_digest", "subsets_digest", "seeds"]
MIN_SUBSETS = 10
"""Fewer give no interval."""
OBSERVATION = "query_loss@5"


@dataclass(frozen=True, kw_only=True)
class DatamodelTest(Run):
    """A run that trains on random subsets; ``budgets`` and ``design`` are not used, ``seeds`` are those of a subset.

    Attributes:
        subsets: how many.
        share: of D in each.
    """

    subsets: int = 64
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subsets < 3:
            raise InvalidInput(f"--subsets {self.subsets}: at least 3 are expected, for ranks to be correlated.")
        if not 0 < self.share * len(self.study.dataset) < len(self.study.dataset):
            raise InvalidInput(f"A share of {self.share}: between 0 and 1 is expected.")
        if OBSERVATION not in {metric.observation.name for metric in self.metrics}:
            raise InvalidInput(f"The linear datamodeling score needs a metric of {OBSERVATION}: loss_change.")

    def measure(self, progress: Progress | None = None) -> Datamodels:
        """Train what is not trained yet and score. May be interrupted and called again at any time."""
        with compute_threads(self.threads):
            workspace = self.open(progress)
            queries = workspace.queries(self.specs)
            scores, skipped = self._scores(workspace, queries)
            subsets = [subset(self.study, index, self.share) for index in range(self.subsets)]
            jobs = [[self._job(kept, seed) for seed in range(self.seeds)] for kept in subsets]
            requests = [Request(job, tuple(queries)) for some in jobs for job in some]
            failed = self._retrain(workspace, requests)
            losses = _losses(workspace, jobs, queries)
        record = self._record_subsets(workspace.store, subsets)
        lines, rows = [], []
        for method, matrix in scores.items():
            sums = np.stack([matrix[:, list(kept)].sum(1) for kept in subsets])
            there = ~np.isnan(losses).any(1)
            own = spearman(sums[there], -losses[there])
            interval = subset_interval(sums[there], -losses[there])
            lines.append((self.label(method), *interval, int(there.sum())))
            for query, value in zip(queries, own, strict=True):
                rows.append(self._row(method, query, float(value), int(there.sum()), record))
        table = pd.DataFrame(lines, columns=["method", "lds", "low", "high", "subsets"])
        table = table.sort_values("lds", ascending=False, ignore_index=True)
        frame = _merge(workspace.store, pd.DataFrame(rows))
        write_whole(workspace.store.path(folder.LDS_TABLE), markdown(table, len(queries), self.seeds).encode())
        return Datamodels(table, frame, skipped, sorted(set(failed.values())))

    def _scores(
        self, workspace: Workspace, queries: Sequence[Query]
    ) -> tuple[dict[Method, np.ndarray], dict[str, str]]:
        """τ of each method, queries × images, and why others are missing."""
        scores: dict[Method, np.ndarray] = {}
        skipped: dict[str, str] = {}
        for method in self.with_floor:
            try:
                method.prepare()
                scores[method] = workspace.scores(method, queries).matrix.double().numpy()
            except BenchError as error:
                skipped[self.label(method)] = str(error)
                workspace.progress.say(f"skipped {self.label(method)}: {error}")
        return scores, skipped

    def _job(self, kept: Sequence[int], seed: int) -> TrainingJob:
        left_out = set(range(len(self.study.dataset))) - set(kept)
        return TrainingJob(tuple(sorted(left_out)), evaluation_seed(self.study, seed))

    def _record_subsets(self, store: Store, drawn: Sequence[Sequence[int]]) -> str:
        """Keep the hash of every subset's ids; returns the digest of all of them."""
        ids = self.study.dataset.ids
        hashes = [digest_of(sorted(ids[index] for index in kept)) for kept in drawn]
        digest = digest_of(hashes)
        facts = {"study_digest": self.study.digest, "share": self.share, "seed": self.study.seed, "subsets": hashes}
        write_json(store.path(*folder.subsets(digest)), facts)
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


@dataclass(frozen=True, eq=False)
class Datamodels:
    """What the test found.

    Attributes:
        table: method, mean over queries of LDS with its interval over subsets, number of subsets.
        frame: one row for each method and query, of all runs in the folder.
        skipped: methods without scores, with the reason.
        failures: reasons of trainings that failed; their subsets are left out.
    """

    table: pd.DataFrame
    frame: pd.DataFrame
    skipped: dict[str, str]
    failures: list[str]


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


def _losses(workspace: Workspace, jobs: Sequence[Sequence[TrainingJob]], queries: Sequence[Query]) -> np.ndarray:
    """Subsets × queries, the mean over timesteps and seeds; NaN where a training failed."""

    def loss(job: TrainingJob, query: Query) -> float:
        kept, _ = workspace.ledger.observed(job)
        found = kept.get(query.observed_as(OBSERVATION))
        return float("nan") if found is None else float(found.double().mean())

    return np.array([[np.mean([loss(job, query) for job in some]) for query in queries] for some in jobs])


def _merge(store: Store, new: pd.DataFrame) -> pd.DataFrame:
    """Keep ``new`` rows with the earlier ones; a new row replaces its older self."""
    path = store.path(folder.LDS)
    with store.lock("lds"):
        earlier = [pd.read_parquet(path)] if path.exists() else []
        merged = pd.concat([*earlier, new], ignore_index=True).drop_duplicates(KEYS, keep="last")
        merged = merged.sort_values(["method", "query", "subsets", "seeds"], ignore_index=True)
        buffer = io.BytesIO()
        merged.to_parquet(buffer, index=False)
        write_whole(path, buffer.getvalue())
    return merged


def markdown(table: pd.DataFrame, queries: int, seeds_each: int) -> str:
    """The table, with what it is a mean over."""
    lines = [
        f"Linear datamodeling score, mean over {queries} queries, {seeds_each} training(s) a subset; secondary to "
        "leave-K-out.",
        "",
        "| method | LDS [95 % interval over subsets] | subsets |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in table_cells(table))]) + "\n"


def table_cells(table: pd.DataFrame) -> list[list[str]]:
    """The table's cells as text."""
    return [
        [str(line.method), f"{line.lds:+.3f} {_interval(line.low, line.high)}", str(line.subsets)]
        for line in table.itertuples()
    ]


def _interval(low: float, high: float) -> str:
    return f"(fewer than {MIN_SUBSETS} subsets: no interval)" if pd.isna(low) else f"[{low:+.3f}, {high:+.3f}]"
