"""Tables of a results folder beside its rows: a run adds its lines, and a new line replaces its older self."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bench.records import folder
from bench.records.rows import labels
from bench.records.store import Store


@dataclass(frozen=True, kw_only=True)
class KeptTable:
    """One such table.

    Attributes:
        file: its name in the folder.
        unique: the columns that tell lines apart; a table that lacks one is too old to be read.
        order: the columns by which it is sorted.
    """

    file: str
    unique: Sequence[str]
    order: Sequence[str]

    def read(self, store: Store) -> pd.DataFrame | None:
        """The lines in the folder of ``store``; None where there are none that can be read."""
        frame = store.frame(self.file)
        return frame if frame is not None and set(self.unique) <= set(frame.columns) else None

    def labelled(self, store: Store) -> pd.DataFrame:
        """The same with the ``label`` of each line's method; empty where there are none."""
        frame = self.read(store)
        return pd.DataFrame() if frame is None else frame.assign(label=labels(frame))

    def merge(self, store: Store, new: pd.DataFrame) -> pd.DataFrame:
        """Keep ``new`` lines with those of earlier runs; returns all of them."""
        with store.lock("results"):
            kept = self.read(store)
            every = pd.concat([new] if kept is None else [kept, new], ignore_index=True)
            merged = every.drop_duplicates(list(self.unique), keep="last")
            merged = merged.sort_values(list(self.order), ignore_index=True)
            store.write_frame((self.file,), merged)
        return merged


_WHO = ("study_digest", "method_digest", "query_digest")
_NAMED = ("method", "variant", "settings", "query")
CHOICE: tuple[str, ...] = ("chosen_in", "chosen_box", "measured_in", "measured_box")
"""For which box images were chosen (name, corners), and in which one a value was measured."""
LOCALIZED = KeptTable(
    file=folder.LOCALIZED,
    unique=(*_WHO, "k", *CHOICE, "metric", "design", "seed"),
    order=("metric", "k", *_NAMED, "chosen_in", "measured_in", "design", "seed"),
)
LDS = KeptTable(
    file=folder.LDS,
    unique=(*_WHO, "subset", "seeds"),
    order=(*_NAMED, "subset", "seeds"),
)
RELIABILITY = KeptTable(file=folder.RELIABILITY, unique=(*_WHO, "k"), order=(*_NAMED, "k"))
FORGETTING = KeptTable(
    file=folder.FORGETTING,
    unique=("study_digest", "method_digest", "query_digest", "other_digest", "metric"),
    order=("metric", *_NAMED, "other"),
)
GROUPS = KeptTable(
    file=folder.GROUPS,
    unique=(*_WHO, "groups", "group", "seeds"),
    order=("groups", *_NAMED, "group", "seeds"),
)
PROJECTION = KeptTable(
    file=folder.PROJECTION,
    unique=(*_WHO, "images"),
    order=(*_NAMED, "dimension", "images"),
)
EVERY = (LOCALIZED, LDS, RELIABILITY, FORGETTING, GROUPS, PROJECTION)
