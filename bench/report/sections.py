"""What a results folder holds beside its rows, as sections of the board: each has a title, a few words and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.records import tables
from bench.records.store import Store
from bench.report import datamodels, forgetting, groups, localized
from bench.report.board import RANKED_BY, Board
from bench.report.shown import Table, as_markdown

Part = tuple[str, Sequence[Table]]
"""A title, "" where one is enough, and the tables below it."""


@dataclass(frozen=True)
class Section:
    """Some tables with what they are.

    Attributes:
        key: names it on the page.
        title, about: above them.
        parts: in order.
    """

    key: str
    title: str
    about: str
    parts: Sequence[Part]

    def markdown(self) -> str:
        """For ``leaderboard.md``."""
        lines = [f"## {self.title}\n", f"{self.about}\n"]
        for title, found in self.parts:
            lines += [*([f"### {title}\n"] if title else []), *map(as_markdown, found)]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """For the page."""
        parts = [{"title": title, "tables": list(found)} for title, found in self.parts]
        return {"key": self.key, "title": self.title, "about": self.about, "parts": parts}


def sections(store: Store, board: Board) -> list[Section]:
    """Those of a results folder that are not empty; ``board`` is its own."""
    boxes = [(" and ".join(parts).replace("_", " "), found) for parts, found in localized.kept_tables(store).items()]
    found = [
        Section("boxes", "Boxes on parts of the picture", localized.ABOUT, boxes),
        Section("left-out", "Whole groups of images", groups.ABOUT, [("", groups.kept_tables(store))]),
    ]
    subsets, forgotten = tables.LDS.labelled(store), tables.FORGETTING.labelled(store)
    if len(subsets):
        shown: Table = datamodels.HEAD, datamodels.cells(datamodels.summary(subsets))
        found.append(Section("subsets", "Random halves of the data", _about_subsets(subsets, board), [("", [shown])]))
    if len(forgotten):
        shown = forgetting.HEAD, forgetting.cells(forgotten)
        found.append(Section("forgotten", "What unlearning forgets", forgetting.ABOUT, [("", [shown])]))
    return [section for section in found if any(shown for _, shown in section.parts)]


def _about_subsets(lines: pd.DataFrame, board: Board) -> str:
    """What LDS is, and whether it agrees with the board's order of the methods that compete."""
    competing = [name for group in board.groups.get(board.main_k, ()) for name in group]
    if not competing:
        return datamodels.ABOUT
    shared, rho = datamodels.agreement(lines, board.tables[RANKED_BY, board.main_k][competing])
    if math.isnan(rho.mean):
        return datamodels.ABOUT
    told = f"{rho:.2f}".replace("-", "−")
    order = f"Its order of {len(shared)} methods and that of removals at K = {board.main_k}: ρ {told}."
    return f"{datamodels.ABOUT} {order}"
