"""Stage 8, the results: a long-form frame, one row per value, with a manifest of what produced it.

Unit and direction belong to the metric; the columns are defined once, here, and described in ``results/README.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from bench.errors import DamagedArtifact, ResultsFolderError
from bench.records import folder
from bench.records.names import MethodName
from bench.records.store import Store

KEY_COLUMNS = ["study_digest", "method_digest", "query_digest", "k", "metric", "design", "seed"]
NOTHING_REMOVED = "nothing removed"
REFERENCE = "random reference"
"""What the rows of the random reference call their method; ``method_digest`` tells the draws apart."""
NOT_RANKED = (NOTHING_REMOVED, REFERENCE)
BASELINE = "random"
"""The method from which differences are taken."""


def _column(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value."""

    study: str = _column("name of the study")
    study_digest: str = _column("digest of data set, text encoder, model, recipe and seed")
    method: str = _column(
        "attribution method, or 'nothing removed' (unpaired floor), or 'random reference' (its curve)"
    )
    variant: str = _column("the method's named variant, such as an ablation; '' for the method itself")
    settings: str = _column("JSON of the settings that differ from those tuned for the study; '' where none does")
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
    value: float = _column("value, in the metric's unit; NaN where it failed")
    status: str = _column("'done' or 'failed'")
    reason: str = _column("why it failed, else empty")
    model_key: str = _column("key of the retrained model in the ledger")
    train_seconds: float = _column("wall time of the retraining, in seconds")
    score_seconds: float = _column("seconds of scoring this query, with its part of what queries and methods share")
    machine: str = _column("machine that trained the model")


PANDAS_TYPES = {"str": "str", "int": "int64", "float": "float64"}
LATER_COLUMNS = ("variant", "settings", "evaluator")
"""That older rows do not have."""
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
        _refuse_other_studies(store, [*earlier, new])
        merged = pd.concat([*earlier, new], ignore_index=True).drop_duplicates(KEY_COLUMNS, keep="last")
        merged = merged.sort_values(["method", "k", "query", "metric", "design", "seed"], ignore_index=True)
        store.write_frame((folder.ROWS,), merged)
    return merged


def _refuse_other_studies(store: Store, frames: Iterable[pd.DataFrame]) -> None:
    """Raise where ``frames`` hold rows of more than one version of a study."""
    found = sorted({str(digest) for frame in frames for digest in frame["study_digest"].unique()})
    if len(found) > 1:
        raise ResultsFolderError(
            f"{store.path(folder.ROWS)} holds rows of other versions of a study ({', '.join(found)}). Rows of "
            "different versions are never mixed: give another folder with --results."
        )


def load(store: Store) -> pd.DataFrame:
    """The rows kept in a results folder; an empty frame where there are none."""
    return next(iter(_earlier(store)), frame_of([]))


def _earlier(store: Store) -> list[pd.DataFrame]:
    """The kept frame, if there is one that can be read and that has rows."""
    frame = store.frame(folder.ROWS)
    if frame is None or not len(frame):
        return []
    try:
        return [completed(frame)]
    except DamagedArtifact as error:
        if store.read_only:
            raise
        store.set_aside(store.path(folder.ROWS), str(error))
        return []


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """A kept frame with the columns of COLUMNS, "" where it is too old to have them.

    Raises DamagedArtifact where columns are missing that rows always had, or are of another type.
    """
    missing = [name for name in COLUMNS if name not in frame and name not in LATER_COLUMNS]
    if missing:
        raise DamagedArtifact(f"{folder.ROWS} lacks the columns {', '.join(missing)}.")
    if len(frame) and "variant" not in frame:
        frame = _with_names(frame)
    fresh = {name: "" for name in COLUMNS if name not in frame}
    try:
        return frame.assign(**fresh)[[*COLUMNS]].astype({name: kind for name, (kind, _) in COLUMNS.items()})
    except (ValueError, TypeError) as error:
        raise DamagedArtifact(f"{folder.ROWS} has columns of another type ({error}).") from error


def _with_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that are older than the columns ``variant`` and ``settings``, with these."""
    known = {label: MethodName.of_old_label(label) for label in frame["method"].unique()}
    named = frame["method"].map(known)
    return frame.assign(
        method=[name.method for name in named],
        variant=[name.variant for name in named],
        settings=[name.settings for name in named],
    )


def labels(frame: pd.DataFrame) -> pd.Series[str]:
    """A label for each row's method; where a label stands for several digests, these tell them apart."""
    named = list(zip(frame["method"], frame["variant"], frame["settings"], strict=True))
    known = {parts: MethodName(*parts).label for parts in set(named)}
    plain = pd.Series([known[parts] for parts in named], index=frame.index, dtype="str")
    digests = frame.groupby(plain)["method_digest"].nunique()
    mixed = plain.isin(digests.index[digests > 1]) & ~frame["method"].isin([*NOT_RANKED, BASELINE])
    return plain.where(~mixed, plain + " #" + frame["method_digest"].str[:6])
