"""Localized attribution, judged: do the images that are named for a part of a picture matter for that part?

A query has two boxes, A and B. A method names its top K for box A, for box B, for the whole image, and for a random
box as large as A. Each choice is measured in A and in B, and with XY the value in Y of what was chosen for X,

    switch in A = AA − BA                     does the place of the box decide which images are named?
    interaction = (AA − AB − BA + BB) / 2     the mean of the switches in A and in B; 0 where the box does not matter
    gain        = (AA − WA + BB − WB) / 2     what the box adds to the scores of the whole image W

a value for each query, with the interval that every mean here has. The values are metrics in a region after the
images were removed, or, without retraining, SHARE: how many of the top K carry what the query
shows in Y, such as the same hat.

Ours; arXiv 2406.09408 (section 5.1) shows localized unlearning on one image and does not judge it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.records import tables
from bench.records.store import Store
from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import Interval, interval

ABOUT = (
    "Images were named for one box, for the other, for the whole image and for a random box, and measured in both. "
    "Switch: measured in a box, what was named for it less what was named for the other. Interaction: the mean of both "
    "switches of a query, 0 where the box does not matter. Each interval is Student's over queries, 95 %, alone."
)
WHOLE, RANDOM_BOX = "whole image", "random box"
CHANCE = "chance"
"""What has no method: images drawn at random."""
SHARE = "carriers, share of the top K"
SWITCH_HEAD = (
    "metric", "K", "method", "measured in", "box on it", "box on the other", "whole image", "random box",
    "switch [95 % interval]", "queries",
)  # fmt: skip
CONTRAST_HEAD = (
    "metric", "K", "method", "interaction [95 % interval]", "minus whole image [95 % interval]",
    "minus random box [95 % interval]", "queries",
)  # fmt: skip
COLUMNS = (
    "study", "study_digest", "method", "variant", "settings", "method_digest", "query", "query_digest", "prompt",
    "k", *tables.CHOICE, "metric", "evaluator", "design", "seed", "value", "status", "reason", "model_key",
)  # fmt: skip
"""Of ``localized.parquet``: those of ``bench.records.rows``, and for which box images were chosen (name, corners) and
in which one the value was measured. ``query_digest`` is that of the whole image."""
KEYS = ["metric", "k", "label"]
Parts = tuple[str, str]


def values(frame: pd.DataFrame) -> pd.DataFrame:
    """One line for each metric, K, label and query; a column for each (chosen_in, measured_in).

    Args:
        frame: metric, k, label, query, chosen_in, measured_in, value; means are taken over anything else.
    """
    own = frame.dropna(subset="value")
    return own.pivot_table(index=[*KEYS, "query"], columns=["chosen_in", "measured_in"], values="value", sort=False)


def switches(frame: pd.DataFrame, parts: Parts) -> pd.DataFrame:
    """For each metric, K, label and part: the means of all choices measured there, and the switch.

    Columns: metric, k, label, part, own, other, whole, random, switch, low, high, queries. NaN where there is none, as
    of what has no regions.
    """
    lines = []
    for key, table in values(frame).groupby(level=KEYS, sort=False):
        for part, other in (parts, parts[::-1]):
            columns = [_column(table, chosen, part) for chosen in (part, other, WHOLE, RANDOM_BOX)]
            found = _known(columns[0] - columns[1])
            count = len(found) or int(columns[2].notna().sum())
            lines.append((*key, part, *(column.mean() for column in columns), *interval(found), count))
    names = [*KEYS, "part", "own", "other", "whole", "random", "switch", "low", "high", "queries"]
    return pd.DataFrame(lines, columns=names)


def contrasts(frame: pd.DataFrame, parts: Parts) -> pd.DataFrame:
    """For each metric, K and label with regions: interaction, gain over the whole image and over a random box.

    Columns: metric, k, label, then name, name_low, name_high of each contrast, queries.
    """
    lines = []
    for key, table in values(frame).groupby(level=KEYS, sort=False):
        found = {name: _known(column) for name, column in _contrasts(table, parts).items()}
        if len(found["interaction"]):
            lines.append(
                (*key, *(bound for own in found.values() for bound in interval(own)), len(found["interaction"]))
            )
    bounds = [name + end for name in ("interaction", "over_whole", "over_random") for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=[*KEYS, *bounds, "queries"])


def _contrasts(table: pd.DataFrame, parts: Parts) -> dict[str, pd.Series]:
    """A value for each query; NaN where a choice is missing."""
    a, b = parts
    own = _column(table, a, a) + _column(table, b, b)

    def gain(chosen: str) -> pd.Series:
        return (own - _column(table, chosen, a) - _column(table, chosen, b)) / 2

    crossed = (own - _column(table, a, b) - _column(table, b, a)) / 2
    return {"interaction": crossed, "over_whole": gain(WHOLE), "over_random": gain(RANDOM_BOX)}


def _column(table: pd.DataFrame, chosen: str, measured: str) -> pd.Series:
    """NaN where nothing was chosen so."""
    missing = pd.Series(np.nan, index=table.index)
    found: pd.Series = table.get((chosen, measured), missing)
    return found


def _known(column: pd.Series) -> np.ndarray:
    found: np.ndarray = column.dropna().to_numpy(float)
    return found


def pairs_of(frame: pd.DataFrame) -> list[Parts]:
    """The pairs of boxes that were attributed and measured together."""
    found = zip(frame["chosen_in"], frame["measured_in"], strict=True)
    named = set(frame["measured_in"])
    return sorted({(min(pair), max(pair)) for pair in found if pair[0] != pair[1] and named.issuperset(pair)})


def kept_tables(store: Store) -> dict[Parts, list[Table]]:
    """The tables of every pair of boxes in the folder of ``store``; none where nothing was attributed in boxes."""
    frame = tables.LOCALIZED.labelled(store)
    return {parts: tables_of(frame, parts) for parts in pairs_of(frame)} if len(frame) else {}


def tables_of(frame: pd.DataFrame, parts: Parts) -> list[Table]:
    """The means with their switches, and the contrasts where there are some."""
    own = frame[frame["measured_in"].isin(parts)]
    told = contrasts(own, parts)
    found: list[Table] = [(SWITCH_HEAD, switch_cells(switches(own, parts)))]
    return [*found, (CONTRAST_HEAD, contrast_cells(told))] if len(told) else found


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalReport(ReportOnMethods):
    """What was found.

    Attributes:
        parts: what the two boxes are called.
        frame: one row a value, of all runs in the folder with these boxes (``COLUMNS``).
        place: the folder where it lies.
        figures: paths of the pictures.
    """

    parts: Parts
    frame: pd.DataFrame
    place: Path
    figures: Sequence[Path] = ()

    def tables(self) -> list[Table]:
        """The means with their switches, and the contrasts."""
        return tables_of(self.frame, self.parts)

    def notes(self) -> list[str]:
        """What was skipped, how to read it, where it lies."""
        a, b = (part.replace("_", " ") for part in self.parts)
        return [
            *super().notes(),
            f"interaction: what the images of the {a} box do to the {a} and those of the {b} box to the {b}, beyond "
            "what they do to the other; 0 where the box does not matter",
            f"tables, frame and pictures: {self.place}",
        ]

    def problems(self) -> list[str]:
        """What failed."""
        lost = self.frame[self.frame["status"] == "failed"]
        return [
            *super().problems(),
            *([f"{len(lost)} of {len(self.frame)} values are missing: {lost['reason'].iloc[0]}"] if len(lost) else []),
        ]

    def markdown(self) -> str:
        """The tables, with what they are."""
        head = f"Boxes on {' and '.join(self.parts)}. `bench/report/localized.py` has the definitions."
        return "\n".join([head + "\n", *map(as_markdown, self.tables())])


def switch_cells(table: pd.DataFrame) -> list[list[str]]:
    """The lines of ``switches`` as text."""
    return [
        [
            str(line.metric), str(line.k), str(line.label), str(line.part),
            *(_number(value) for value in (line.own, line.other, line.whole, line.random)),
            f"{Interval(line.switch, line.low, line.high):+.3g}", str(line.queries),
        ]
        for line in table.itertuples()
    ]  # fmt: skip


def contrast_cells(table: pd.DataFrame) -> list[list[str]]:
    """The lines of ``contrasts`` as text."""
    return [
        [
            str(line.metric), str(line.k), str(line.label),
            f"{Interval(line.interaction, line.interaction_low, line.interaction_high):+.3g}",
            f"{Interval(line.over_whole, line.over_whole_low, line.over_whole_high):+.3g}",
            f"{Interval(line.over_random, line.over_random_low, line.over_random_high):+.3g}",
            str(line.queries),
        ]
        for line in table.itertuples()
    ]  # fmt: skip


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"
