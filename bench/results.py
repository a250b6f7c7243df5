"""Stage 8, the results: a long-form frame, one row per figure, with a manifest of what produced it.

Unit and direction belong to the metric; the columns are defined once, here, and described in ``results/README.md``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd
from pyarrow import ArrowInvalid

from bench.contracts import Metric
from bench.errors import ResultsFolderError
from bench.registry import metrics
from bench.statistics import Equivalent, equivalent_random, mean_and_error, paired_interval
from bench.store import Store, write_whole

KEY_COLUMNS = ["study_digest", "method_digest", "query_digest", "k", "metric", "design", "seed"]
NOTHING_REMOVED = "nothing removed"
REFERENCE = "random reference"
"""What the rows of the random reference call their method; ``method_digest`` tells the draws apart."""
NOT_RANKED = (NOTHING_REMOVED, REFERENCE)
BASELINE = "random"
"""The method from which differences are taken."""
FILE = "results.parquet"
TABLE_HEAD = (
    "metric",
    "K",
    "method",
    "design",
    "queries",
    "mean ± 1 SE",
    "minus random [95 % interval]",
    "equals random images [95 % interval]",
    "scoring s/query",
)


def _column(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    study: str = _column("name of the study")
    study_digest: str = _column("digest of data set, text encoder, model, recipe and seed")
    method: str = _column(
        "attribution method, or 'nothing removed' (unpaired floor), or 'random reference' (its curve)"
    )
    method_digest: str = _column(
        "digest of the method's name, version and settings; of the draw in the random reference"
    )
    query: str = _column("id of the query")
    query_digest: str = _column("digest of the query's prompt, noise, sampler and final latent")
    prompt: str = _column("prompt of the query")
    k: int = _column("number of images removed")
    metric: str = _column("name of the metric")
    evaluator: str = _column(
        "digest of the metric's name, version, observation and weights; '' in rows before it was kept"
    )
    design: str = _column("'paired' (with an original of the same initial weights and draws) or 'unpaired' (with θ0)")
    seed: int = _column("seed of the retrained model's initial weights and draws")
    value: float = _column("figure, in the metric's unit; NaN where it failed")
    status: str = _column("'done' or 'failed'")
    reason: str = _column("why it failed, else empty")
    model_key: str = _column("key of the retrained model in the ledger")
    train_seconds: float = _column("wall time of the retraining, in seconds")
    score_seconds: float = _column("seconds of scoring this query, with its part of what queries and methods share")
    machine: str = _column("machine that trained the model")


PANDAS_TYPES = {"str": "str", "int": "int64", "float": "float64"}
COLUMNS: dict[str, tuple[str, str]] = {
    column.name: (PANDAS_TYPES[str(column.type)], column.metadata["meaning"]) for column in fields(Row)
}
"""Type and meaning of each column of the frame."""


def frame_of(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a frame with the columns and types of COLUMNS."""
    frame = pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
    return frame.astype({name: kind for name, (kind, _) in COLUMNS.items()})


def merge(store: Store, new: pd.DataFrame) -> pd.DataFrame:
    """Keep ``new`` rows with those of earlier runs in the results folder; a new row replaces its older self."""
    with store.lock("results"):
        earlier = _earlier(store)
        merged = pd.concat([*earlier, new], ignore_index=True).drop_duplicates(KEY_COLUMNS, keep="last")
        merged = merged.sort_values(["method", "k", "query", "metric", "design", "seed"], ignore_index=True)
        buffer = io.BytesIO()
        merged.to_parquet(buffer, index=False)
        write_whole(store.path(FILE), buffer.getvalue())
    return merged


def check_evaluators(store: Store, chosen: Iterable[Metric]) -> None:
    """Raise where the folder holds figures of the ``chosen`` metrics by another evaluator: they must not be mixed."""
    for frame in _earlier(store):
        for metric in chosen:
            theirs = set(frame.loc[frame["metric"] == metric.name, "evaluator"]) - {"", metric.digest}
            if theirs:
                raise ResultsFolderError(
                    f"The results folder {store.root} holds figures of '{metric.name}' by evaluator "
                    f"{', '.join(sorted(theirs))}; here it is {metric.digest} (another version, or other weights). "
                    "Figures of different evaluators are never mixed: give another folder with --results."
                )


def load(store: Store) -> pd.DataFrame:
    """The figures kept in a results folder; an empty frame where there are none."""
    return next(iter(_earlier(store)), frame_of([]))


def _earlier(store: Store) -> list[pd.DataFrame]:
    """The kept frame, if there is one that can be read and that has rows; columns that it is too old to have are ''."""
    path = store.path(FILE)
    if not path.exists():
        return []
    try:
        frame = pd.read_parquet(path)
    except (ArrowInvalid, OSError) as error:
        store.set_aside(path, f"{path} cannot be read as parquet ({error}).")
        return []
    fresh = {name: "" for name in COLUMNS if name not in frame}
    return [frame.assign(**fresh)[[*COLUMNS]]] if len(frame) else []


def labels(frame: pd.DataFrame) -> pd.Series:
    """A name for each method with its settings; where a name stands for several, their digests tell them apart."""
    digests = frame.groupby("method")["method_digest"].nunique()
    mixed = frame["method"].map(digests > 1) & ~frame["method"].isin([*NOT_RANKED, BASELINE])
    return frame["method"].where(~mixed, frame["method"] + " #" + frame["method_digest"].str[:6])


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


def summarize(frame: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Mean ± 1 standard error over queries of each method, K, metric and design, with its difference to ``baseline``.

    Values of one query under several seeds are averaged first. The difference is paired by query at the same K,
    metric and design; ``low`` and ``high`` bound its 95 % interval. Failed figures are left out and counted. Where the
    random reference has been run, ``images`` random ones give the same figure (between ``images_low`` and
    ``images_high``; ``outside`` says where the figure lies beyond the curve).
    """
    keys = ["method", "k", "metric", "design"]
    seconds = frame.groupby(keys)["score_seconds"].mean()
    done = frame[frame["status"] == "done"]
    per_query = done.groupby([*keys, "query"], sort=False)["value"].mean()
    failed = frame[frame["status"] == "failed"].groupby(keys).size()
    lines: list[dict[str, Any]] = []
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
            difference = paired_interval(own[other.index].to_numpy(), other.to_numpy())
            line |= {"difference": difference.mean, "low": difference.low, "high": difference.high}
        line |= _equivalent_columns(frame, str(method), str(metric), str(design), own)
        lines.append(line)
    columns = [*keys, "queries", "failed", "mean", "standard_error", "difference", "low", "high"]
    columns += ["images", "images_low", "images_high", "outside", "score_seconds"]
    order = {metric.name: index for index, metric in enumerate(metrics)}
    table = pd.DataFrame(lines, columns=columns)
    return table.sort_values(
        ["metric", "k", "mean"], key=lambda c: c.map(order) if c.name == "metric" else c, ignore_index=True
    )


def _equivalent_columns(
    frame: pd.DataFrame, method: str, metric: str, design: str, own: pd.Series[float]
) -> dict[str, float | str]:
    """Of one line of the summary. A metric relative to controls has none: random removals do not raise it steadily."""
    kind = metrics.find(metric)
    if method in (REFERENCE, NOTHING_REMOVED) or kind is None or kind.relative_to_controls:
        return {"outside": ""}
    found = equivalent(own, reference_curve(frame, metric, design), higher_is_better=kind.higher_is_better)
    if found is None:
        return {"outside": ""}
    return {"images": found.images, "images_low": found.low, "images_high": found.high, "outside": found.outside}


def markdown(table: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    lines = ["| " + " | ".join(TABLE_HEAD) + " |", "|" + "---|" * len(TABLE_HEAD)]
    lines += ["| " + " | ".join(cells) + " |" for cells in table_cells(table)]
    return "\n".join(lines) + "\n"


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
            "" if pd.isna(line.low) else f"{line.difference:+.5f} [{line.low:+.5f}, {line.high:+.5f}]",
            _equivalent_cell(line),
            f"{line.score_seconds:.2f}" if line.k and line.method != REFERENCE else "",
        ]
        for line in table.itertuples()
    ]


def _equivalent_cell(line: Any) -> str:
    if line.outside:
        return f"{line.outside} the curve"
    if pd.isna(line.images):
        return ""
    interval = "" if pd.isna(line.images_low) else f" [{line.images_low:.0f}, {line.images_high:.0f}]"
    return f"{line.images:.0f}{interval}"
