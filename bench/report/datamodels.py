"""The linear datamodeling score for people: sums of a method's scores beside what models without the rest have lost.

Each line of the table ``lds`` holds the sum of one method's scores over one random subset of D for one query, and the
loss change of a model that was trained on that subset alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import MIN_QUERIES, RESAMPLES, Interval, percentile_bounds, resamples

ABOUT = (
    "Models were trained on random halves of the data. The linear datamodeling score (LDS) asks whether a method tells "
    "which of them lose most at the query: Spearman's ρ over halves between the sum of its scores of the images that "
    "were kept and the model's loss with the sign turned, a mean over queries with a 95 % interval from resampled "
    "halves. It assumes that influence adds up, which similarity and unlearning do not claim: secondary to leave-K-out."
)
HEAD = ("method", "LDS [95 % interval over subsets]", "subsets", "queries")
MIN_SUBSETS = 10
"""Fewer give no interval."""
FEWEST = 4
"""Methods that both must have for their orders to be compared."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Of one method: subsets × queries.

    Attributes:
        sums: of the scores of the images in the subset.
        gains: the loss change without the others, with the sign turned: higher is better.
        seeds: trainings that each gain is a mean over.
    """

    sums: pd.DataFrame
    gains: pd.DataFrame
    seeds: int

    @property
    def score(self) -> Interval:
        """LDS: ``subset_interval``."""
        return subset_interval(self.sums.to_numpy(), self.gains.to_numpy())


def sums_of(frame: pd.DataFrame) -> dict[str, Sums]:
    """By label, of the lines with their ``label``: only the subsets that all of the method's queries have."""
    found = {}
    for (label, seeds), own in frame.sort_values("seeds").groupby(["label", "seeds"], sort=True):
        whole = own.pivot_table(index="subset", columns="query", values=["sum", "change"], dropna=False).dropna()
        if len(whole) > 1:
            found[str(label)] = Sums(whole["sum"], -whole["change"], int(seeds))
    return found


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Method, lds with low and high, subsets, queries; the best first."""
    lines = [
        (label, *own.score, *own.sums.shape) for label, own in (sums_of(frame) if len(frame) else {}).items()
    ]  # fmt: skip
    table = pd.DataFrame(lines, columns=["method", "lds", "low", "high", "subsets", "queries"])
    return table.sort_values("lds", ascending=False, ignore_index=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Datamodels(ReportOnMethods):
    """What the test found.

    Attributes:
        frame: one line for each method, query and subset, of all runs in the folder, with its label.
    """

    frame: pd.DataFrame

    def tables(self) -> list[Table]:
        """LDS of each method."""
        return [(HEAD, cells(summary(self.frame)))]

    def markdown(self) -> str:
        """The table, with what it is."""
        return "\n".join([f"{ABOUT}\n", *map(as_markdown, self.tables())])


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation of each query over subsets; NaN where a query's values are constant.

    Args:
        one, other: … × subsets × queries.

    Returns:
        … × queries.
    """
    first, second = (stats.rankdata(values, axis=-2) for values in (one, other))
    first, second = (ranks - ranks.mean(-2, keepdims=True) for ranks in (first, second))
    scale = np.sqrt((first**2).sum(-2) * (second**2).sum(-2))
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (first * second).sum(-2) / scale
    return found


def subset_interval(sums: np.ndarray, targets: np.ndarray, *, seed: int = 0) -> Interval:
    """Mean over queries of Spearman's ρ with its percentile bounds over resampled subsets.

    NaN bounds for fewer than MIN_SUBSETS subsets.

    Args:
        sums, targets: subsets × queries.
    """
    mean = float(_mean(spearman(sums, targets))) if len(sums) > 1 else float("nan")
    if len(sums) < MIN_SUBSETS:
        return Interval(mean, float("nan"), float("nan"))
    chosen = resamples(len(sums), seed=seed)
    return Interval(mean, *percentile_bounds(_mean(spearman(sums[chosen], targets[chosen]))))


def agreement(frame: pd.DataFrame, values: pd.DataFrame, *, seed: int = 0) -> tuple[Sequence[str], Interval]:
    """Does LDS rank methods as retraining without their top images does? Spearman's ρ over methods of the means.

    The interval resamples queries, the same for both, and subsets.

    Args:
        frame: the lines with their ``label``.
        values: queries × methods; higher means that the removed images mattered more.

    Returns:
        The methods that both have, and ρ; NaN where they are too few, NaN bounds for few queries or subsets.
    """
    known = {label: own for label, own in sums_of(frame).items() if label in values}
    none = Interval(float("nan"), float("nan"), float("nan"))
    if len(known) < FEWEST:
        return list(known), none
    table = values[list(known)].dropna()
    queries = [query for query in table.index if all(query in own.sums for own in known.values())]
    subsets = sorted(set.intersection(*(set(own.sums.index) for own in known.values())))
    if not queries or len(subsets) < 2:
        return list(known), none
    removed = table.loc[queries].to_numpy(float)
    sums, gains = (
        np.stack([part.loc[subsets, queries].to_numpy(float) for part in parts])
        for parts in zip(*((own.sums, own.gains) for own in known.values()), strict=True)
    )

    def rho(of_subsets: np.ndarray, of_queries: np.ndarray) -> float:
        chosen = np.ix_(np.arange(len(known)), of_subsets, of_queries)
        scores = _mean(spearman(sums[chosen], gains[chosen]))
        return float(stats.spearmanr(scores, removed[of_queries].mean(0)).statistic)

    sizes = len(subsets), len(queries)
    value = rho(*map(np.arange, sizes))
    if len(subsets) < MIN_SUBSETS or len(queries) < MIN_QUERIES:
        return list(known), Interval(value, float("nan"), float("nan"))
    stream = np.random.default_rng(seed)
    drawn = [rho(*(stream.integers(0, size, size) for size in sizes)) for _ in range(RESAMPLES)]
    return list(known), Interval(value, *percentile_bounds(drawn))


def cells(table: pd.DataFrame) -> list[list[str]]:
    """The lines of ``summary`` as text."""
    return [
        [str(line.method), f"{line.lds:+.3f} {_bounds(line.low, line.high)}", str(line.subsets), str(line.queries)]
        for line in table.itertuples()
    ]


def _bounds(low: float, high: float) -> str:
    return f"(fewer than {MIN_SUBSETS} subsets: no interval)" if pd.isna(low) else f"[{low:+.3f}, {high:+.3f}]"


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of the values that are numbers; NaN where none is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(-1) / known.sum(-1))
