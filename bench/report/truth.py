"""Truth by parts, where the parts of images are known: how many of the query's carriers does a method name?

A query's *known set* are the training images that carry its rare parts (``Study.known_set``). Of a method's top K,

    recall = carriers among them / carriers,   precision = carriers among them / K,   chance: recall K / N

This costs no retraining. Whether it tells what retraining tells is asked by ``agreement``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bench.diffusion.queries import Query
from bench.report.shown import Table
from bench.report.statistics import Interval, interval
from bench.studies import Study

EVERY = "all"
"""The group of all queries."""
TABLE_HEAD = ("K", "method", "queries", "carriers found, of all [95 % interval]", "of the top K", "by chance")
Tops = Mapping[str, Mapping[tuple[str, int], Sequence[int]]]
"""The top K images by method's label, then by (query id, K)."""


def found_carriers(study: Study, queries: Sequence[Query], tops: Tops) -> pd.DataFrame:
    """A row for each method, query and K: label, query, group, k, carriers, found, recall, precision, chance."""
    lines = []
    known = {query.id: (study.group(query), study.known_set(query)) for query in queries}
    for label, chosen in tops.items():
        for (name, k), top in chosen.items():
            group, carriers = known.get(name, ("", frozenset()))
            if carriers:
                found = len(carriers.intersection(top))
                shares = found / len(carriers), found / k, k / len(study.dataset)
                lines.append((label, name, group, k, len(carriers), found, *shares))
    columns = ["label", "query", "group", "k", "carriers", "found", "recall", "precision", "chance"]
    return pd.DataFrame(lines, columns=columns)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over queries by K, method and group (EVERY and each group): recall with its interval, precision, chance."""
    lines = []
    groups = [EVERY, *sorted(set(frame["group"]) - {""})]
    for group in groups:
        own = frame if group == EVERY else frame[frame["group"] == group]
        for (k, label), rows in own.groupby(["k", "label"], sort=False):
            recall = interval(rows["recall"].to_numpy())
            means = rows["precision"].mean(), rows["chance"].mean()
            lines.append((group, k, label, len(rows), *recall, *means))
    columns = ["group", "k", "label", "queries", "recall", "low", "high", "precision", "chance"]
    table = pd.DataFrame(lines, columns=columns)
    return table.sort_values(["group", "k", "recall"], ascending=[True, True, False], ignore_index=True)


@dataclass(frozen=True, eq=False)
class Truth:
    """What the parts tell.

    Attributes:
        carriers: of ``summary``; empty where the parts of images are not known.
        agreement: by K, whether carriers rank methods as retraining does (``agreement``); only the K that can tell.
    """

    carriers: pd.DataFrame
    agreement: dict[int, Interval]

    @classmethod
    def of(cls, study: Study, queries: Sequence[Query], tops: Tops, values: Mapping[int, pd.DataFrame]) -> Truth:
        """For the methods' ``tops``, and ``values`` of the metric by K, queries × labels."""
        found = found_carriers(study, queries, tops)
        told = {k: agreement(found, of_k, k) for k, of_k in values.items()}
        return cls(summary(found), {k: rho for k, rho in told.items() if not np.isnan(rho.mean)})

    def tables(self) -> list[Table]:
        """One table, or none."""
        return [table(self.carriers)] if len(self.carriers) else []

    def notes(self) -> list[str]:
        """A line for each K."""
        return [
            f"K = {k}: carriers found rank methods as retraining does with Spearman's ρ {rho:.2f}"
            for k, rho in self.agreement.items()
        ]


def table(found: pd.DataFrame) -> Table:
    """``summary`` for people: all queries, and beside them the share of carriers found in each group."""
    groups = [group for group in found["group"].unique() if group != EVERY]
    recall = found.set_index(["k", "label", "group"])["recall"]
    lines = [
        [
            str(line.k), str(line.label), str(line.queries),
            f"{Interval(line.recall, line.low, line.high):.2f}",
            *(f"{recall.get((line.k, line.label, group), float('nan')):.2f}" for group in groups),
            f"{line.precision:.2f}", f"{line.chance:.2f}",
        ]
        for line in found[found["group"] == EVERY].itertuples()
    ]  # fmt: skip
    return (*TABLE_HEAD[:-2], *(f"where {group}" for group in groups), *TABLE_HEAD[-2:]), lines


def agreement(frame: pd.DataFrame, values: pd.DataFrame, k: int) -> Interval:
    """Does truth by parts rank methods as retraining does? Spearman's ρ over methods, a mean over queries.

    Args:
        frame: of ``found_carriers``.
        values: queries × labels, the metric at K = ``k``; higher means that the removed images mattered more.
        k: the K.

    Returns:
        The mean with its interval over queries; NaN where no query has three methods that differ in both.
    """
    found = frame[frame["k"] == k].pivot_table(index="query", columns="label", values="found")
    rhos = []
    for query in found.index.intersection(values.index):
        both = pd.concat([found.loc[query], values.loc[query]], axis=1, join="inner").dropna().to_numpy(float)
        if len(both) > 2 and (np.ptp(both, axis=0) > 0).all():
            rhos.append(float(stats.spearmanr(both[:, 0], both[:, 1]).statistic))
    return interval(rhos) if rhos else Interval(float("nan"), float("nan"), float("nan"))
