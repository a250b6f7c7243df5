"""What a results folder holds beside its rows, as sections of the board: each has a title, a few words and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.records import tables
from bench.records.rows import labels
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
    left_out = groups.kept_tables(store)
    found = [
        Section("boxes", "Boxes on parts of the picture", localized.ABOUT, boxes),
        Section("left-out", "Whole groups of images", groups.ABOUT, [("", left_out)] if left_out else []),
        _subsets(store, board),
        _forgotten(store),
    ]
    return [section for section in found if section.parts]


def _subsets(store: Store, board: Board) -> Section:
    """LDS, and whether it agrees with the board's order of the methods that compete."""
    lines, about = datamodels.kept_lines(store), datamodels.ABOUT
    competing = [name for group in board.groups.get(board.main_k, ()) for name in group]
    if len(lines) and competing:
        shared, rho = datamodels.agreement(lines, board.tables[RANKED_BY, board.main_k][competing])
        if not math.isnan(rho.mean):
            told = f"{rho:.2f}".replace("-", "−")
            about += f" Its order of {len(shared)} methods and that of removals at K = {board.main_k}: ρ {told}."
    shown = [(datamodels.HEAD, datamodels.cells(datamodels.summary(lines)))] if len(lines) else []
    return Section("subsets", "Random halves of the data", about, [("", shown)] if shown else [])


def _forgotten(store: Store) -> Section:
    frame = tables.FORGETTING.read(store)
    lines = [] if frame is None else forgetting.cells(frame.assign(label=labels(frame)))
    shown = [("", [(forgetting.HEAD, lines)])] if lines else []
    return Section("forgotten", "What unlearning forgets", forgetting.ABOUT, shown)
