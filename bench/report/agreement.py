"""Do two boards put the methods into the same order? Spearman's ρ of the mean loss changes of those that both have.

Each board at the K that has most methods; floors, ceilings and variants do not count. The interval resamples the
queries of both boards, each by itself; the figures of the MSCOCO study are taken as published, without their own error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from bench.contracts import METHOD
from bench.errors import ResultsFolderError
from bench.records import folder as names
from bench.records.sealing import read_json
from bench.report import published
from bench.report.board import RANKED_BY, leaderboard
from bench.report.merging import open_folder
from bench.report.shown import Report, Table
from bench.report.statistics import MIN_QUERIES, RESAMPLES, Interval, percentile_bounds

HEAD = ("one", "other", "methods", "in both", "Spearman's ρ [95 % interval]")
FEWEST = 4
"""Methods that two orders must share to be compared."""


@dataclass(frozen=True)
class Agreement(Report):
    """What was found.

    Attributes:
        pairs: of orders, by the names of the two: the methods that both have, and ρ.
    """

    pairs: Mapping[tuple[str, str], tuple[Sequence[str], Interval]]

    def tables(self) -> list[Table]:
        """A line for each pair."""
        lines = [
            [one, other, str(len(shared)), ", ".join(shared), f"{rho:.2f}"]
            for (one, other), (shared, rho) in self.pairs.items()
        ]
        return [(HEAD, lines)]

    def notes(self) -> list[str]:
        """How to read it."""
        return [
            "1: the same order, 0: unrelated, −1: the reverse. Floors, ceilings and variants do not count. Of the "
            "figures as published the means alone are known: their own error is not in the interval."
        ]


def compare(roots: Sequence[Path]) -> Agreement:
    """Every pair of the boards in ``roots``, and each of them with the figures as published.

    Raises ResultsFolderError where a folder holds no board.
    """
    orders: dict[str, pd.DataFrame] = {}
    for root in roots:
        name, table = _order(root)
        if name in orders:
            raise ResultsFolderError(f"{root} is given twice, or holds the same study as another folder: {name}.")
        orders[name] = table
    orders[published.NAME] = published.MSCOCO.to_frame().T
    found = {}
    for (one, first), (other, second) in combinations(orders.items(), 2):
        shared = [method for method in first.columns if method in second.columns]
        if len(shared) >= FEWEST:
            found[one, other] = shared, rank_agreement(first[shared], second[shared])
    if not found:
        raise ResultsFolderError(
            f"{', '.join(map(str, roots))}: no two orders share {FEWEST} methods, so there is nothing to compare."
        )
    return Agreement(found)


def rank_agreement(one: pd.DataFrame, other: pd.DataFrame, *, seed: int = 0) -> Interval:
    """Spearman's ρ of the columns' means, with an interval from resampled rows; a single row stays.

    Args:
        one, other: queries × methods, the same columns; a missing value is left out of its mean.
    """
    stream = np.random.default_rng(seed)
    tables = [table.to_numpy(float) for table in (one, other)]

    def rho(samples: Iterable[np.ndarray]) -> float:
        with np.errstate(invalid="ignore"):  # a method that no drawn query has
            means = [np.nansum(sample, 0) / (~np.isnan(sample)).sum(0) for sample in samples]
        known = ~np.isnan(np.stack(means)).any(0)
        return float(stats.spearmanr(means[0][known], means[1][known]).statistic)

    value = rho(tables)
    if max(map(len, tables)) < MIN_QUERIES:
        return Interval(value, float("nan"), float("nan"))
    drawn = [
        rho(table[stream.integers(0, len(table), len(table))] if len(table) > 1 else table for table in tables)
        for _ in range(RESAMPLES)
    ]
    return Interval(value, *percentile_bounds(drawn))


def _order(root: Path) -> tuple[str, pd.DataFrame]:
    """The name of the board in ``root`` and its values at the main K, queries × methods that compete."""
    if not (root / names.STUDY).exists():
        raise ResultsFolderError(f"{root} is no results folder: it has no {names.STUDY}.")
    study = str(read_json(root / names.STUDY).get("name", ""))
    opened = open_folder(root, study)
    board = leaderboard(opened.frame, opened.manifest, study, 0)
    competing = [
        line.method for line in board.lines if line.k == board.main_k and line.role == METHOD and line.name.plain
    ]
    table = board.tables[RANKED_BY, board.main_k]
    return f"{study}, K = {board.main_k}", table[[name for name in competing if name in table]]
