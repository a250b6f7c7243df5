"""Truth by parts, where the parts of images are known: how many of the query's carriers does a method name?

A query's *known set* are the training images that carry its rare parts (``Study.known_set``). Of a method's top K,

    recall = carriers among them / carriers,   precision = carriers among them / K,   chance: recall K / N

This costs no retraining. Whether it tells what retraining tells is asked by ``agreement``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from bench.diffusion.queries import Query
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


def table_cells(table: pd.DataFrame, group: str = EVERY) -> list[list[str]]:
    """Lines of ``summary`` as text, those of one group."""
    return [
        [
            str(line.k), str(line.label), str(line.queries),
            f"{line.recall:.2f}" + ("" if pd.isna(line.low) else f" [{line.low:.2f}, {line.high:.2f}]"),
            f"{line.precision:.2f}", f"{line.chance:.2f}",
        ]
        for line in table[table["group"] == group].itertuples()
    ]  # fmt: skip


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
