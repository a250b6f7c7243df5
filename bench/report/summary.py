"""Rows summed up: means over queries, differences to a floor, equivalents in random images, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.contracts import Metric
from bench.errors import ResultsFolderError
from bench.records.rows import BASELINE, NOT_RANKED, NOTHING_REMOVED, REFERENCE, load
from bench.records.store import Store
from bench.registry import metrics
from bench.report.statistics import MIN_QUERIES, Equivalent, equivalent_random, interval, mean_and_error

TABLE_HEAD = (
    "metric",
    "K",
    "method",
    "design",
    "queries",
    "mean ± 1 SE",
    "minus random [95 % interval]",
    "as bad as trained on … random images [95 % interval]",
    "scoring s/query",
)


def check_evaluators(store: Store, chosen: Iterable[Metric]) -> None:
    """Raise where the folder holds values of the ``chosen`` metrics by another evaluator: they must not be mixed."""
    frame = load(store)
    for metric in chosen:
        theirs = set(frame.loc[frame["metric"] == metric.name, "evaluator"]) - {"", metric.digest}
        if theirs:
            raise ResultsFolderError(
                f"The results folder {store.root} holds values of '{metric.name}' by evaluator "
                f"{', '.join(sorted(theirs))}; here it is {metric.digest} (another version, or other weights). "
                "Values of different evaluators are never mixed: give another folder with --results."
            )


def reference_curve(frame: pd.DataFrame, metric: str, design: str = "paired") -> pd.DataFrame:
    """The random reference: K × queries, the mean of ``metric`` over draws; empty where it has not been run."""
    rows = frame[(frame["method"] == REFERENCE) & (frame["metric"] == metric) & (frame["design"] == design)]
    return rows[rows["status"] == "done"].pivot_table(index="k", columns="query", values="value").sort_index()


def equivalent(own: pd.Series[float], curve: pd.DataFrame, *, higher_is_better: bool = True) -> Equivalent | None:
    """How many random images the values ``own`` of a method, one for each query, amount to.

    Only queries that both have count, and only points of the curve that have all of these; None where no query or
    fewer than two points are left.
    """
    common = [query for query in own.index if query in curve.columns]
    complete = curve[common].dropna()
    if not common or len(complete) < 2:
        return None
    sign = 1.0 if higher_is_better else -1.0
    return equivalent_random((sign * own[common]).to_numpy(), sign * complete)


def summarize(frame: pd.DataFrame, num_images: int, baseline: str = BASELINE) -> pd.DataFrame:
    """Mean ± 1 standard error over queries of each method, K, metric and design, with its difference to ``baseline``.

    Values of one query under several seeds are averaged first. The difference is paired by query at the same K,
    metric and design; ``low`` and ``high`` bound its 95 %
    interval (``statistics.interval``, as on the leaderboard). Failed values are left out and counted. Where the
    random reference has been run, removing ``images`` random ones of ``num_images`` gives the same value (between
    ``images_low`` and ``images_high``; ``outside`` says where the value lies beyond the curve), and ``left`` says in
    words how many are left then.
    """
    keys = ["method", "k", "metric", "design"]
    seconds = frame.groupby(keys)["score_seconds"].mean()
    done = frame[frame["status"] == "done"]
    per_query = done.groupby([*keys, "query"], sort=False)["value"].mean()
    failed = frame[frame["status"] == "failed"].groupby(keys).size()
    lines: list[dict[str, Any]] = []
    curves: dict[tuple[str, str], pd.DataFrame] = {}
    by_group = {group: values.droplevel(keys) for group, values in per_query.groupby(level=keys, sort=False)}
    for group, own in by_group.items():
        method, k, metric, design = group
        mean, error = mean_and_error(own.to_numpy())
        line = dict(zip(keys, group, strict=True)) | {
            "queries": len(own),
            "mean": mean,
            "standard_error": error,
        }
        line |= {"failed": int(failed.get(group, 0)), "score_seconds": float(seconds[group])}
        reference = by_group.get((baseline, k, metric, design))
        if method != baseline and reference is not None:
            other = reference.reindex(own.index).dropna()
            difference = interval((own[other.index] - other).to_numpy())
            line |= {"difference": difference.mean, "low": difference.low, "high": difference.high}
        if (metric, design) not in curves:
            curves[metric, design] = reference_curve(frame, str(metric), str(design))
        line |= _equivalent_columns(curves[metric, design], str(method), str(metric), own, num_images)
        lines.append(line)
    columns = [*keys, "queries", "failed", "mean", "standard_error", "difference", "low", "high"]
    columns += ["images", "images_low", "images_high", "outside", "left", "score_seconds"]
    order = {metric.name: index for index, metric in enumerate(metrics)}
    table = pd.DataFrame(lines, columns=columns)
    return table.sort_values(
        ["metric", "k", "mean"], key=lambda c: c.map(order) if c.name == "metric" else c, ignore_index=True
    )


def by_group(frame: pd.DataFrame, groups: Mapping[str, str]) -> pd.DataFrame:
    """Mean ± 1 standard error in each group of queries: metric, k, method, design × group, as text.

    Args:
        frame: rows.
        groups: each query's group; a query that it lacks is left out.

    Returns:
        A frame with a column for each group; empty where there are not two groups.
    """
    named = frame.assign(group=frame["query"].map(groups))
    named = named[(named["status"] == "done") & ~named["method"].isin(NOT_RANKED) & named["group"].notna()]
    if named["group"].nunique() < 2:
        return pd.DataFrame()
    keys = ["metric", "k", "method", "design", "group"]
    per_query = named.groupby([*keys, "query"], sort=False)["value"].mean()
    cells = per_query.groupby(level=keys).agg(
        lambda own: f"{own.mean():.5f}" + (f" ± {mean_and_error(own.to_numpy())[1]:.5f}" if len(own) > 1 else "")
    )
    wide = cells.reset_index(name="cell").pivot_table("cell", keys[:-1], "group", aggfunc="first", fill_value="")
    return wide.reset_index()


def _equivalent_columns(
    curve: pd.DataFrame, method: str, metric: str, own: pd.Series[float], num_images: int
) -> dict[str, float | str]:
    """Of one line of the summary. A metric relative to controls has none: random removals do not raise it steadily."""
    kind = metrics.find(metric)
    if method in (REFERENCE, NOTHING_REMOVED) or kind is None or kind.relative_to_controls:
        return {"outside": "", "left": ""}
    found = equivalent(own, curve, higher_is_better=kind.higher_is_better)
    if found is None:
        return {"outside": "", "left": ""}
    bounds = {"images": found.images, "images_low": found.low, "images_high": found.high}
    return bounds | {"outside": found.outside, "left": found.left(num_images).text}


def table_cells(table: pd.DataFrame) -> list[list[str]]:
    """The summary's cells as text, a list for each line."""
    return [
        [
            str(line.metric),
            str(line.k),
            str(line.method),
            str(line.design),
            f"{line.queries}" + (f" ({line.failed} failed)" if line.failed else ""),
            f"{line.mean:.5f} ± {line.standard_error:.5f}" if line.queries > 1 else f"{line.mean:.5f}",
            _difference_cell(line),
            str(line.left),
            f"{line.score_seconds:.2f}" if line.k and line.method != REFERENCE else "",
        ]
        for line in table.itertuples()
    ]


def _difference_cell(line: Any) -> str:
    if pd.isna(line.difference):
        return ""
    bounds = f"[{line.low:+.5f}, {line.high:+.5f}]"
    return f"{line.difference:+.5f} " + (f"(needs {MIN_QUERIES} queries)" if pd.isna(line.low) else bounds)
