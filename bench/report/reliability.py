"""What two scorings of one method have in common, as a table and for the board."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.records import tables
from bench.records.store import Store
from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import interval

ENOUGH = 0.8
"""A method whose two scorings share less of the top K is undersampled."""
HEAD = ("K", "method", "of the top K in both [95 % interval]", "Spearman of all scores", "scoring s/query", "queries")

GROUP = ["k", "label", "method_digest"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ReliabilityReport(ReportOnMethods):
    """What was found.

    Attributes:
        frame: one line for each method, query and K, of all runs in the folder, with its label.
        num_images: N.
    """

    frame: pd.DataFrame
    num_images: int

    def tables(self) -> list[Table]:
        """The means over queries, those that agree best first."""
        return [(HEAD, cells(self.frame))] if len(self.frame) else []

    def notes(self) -> list[str]:
        """What was skipped, what chance gives, and who is undersampled."""
        told = super().notes()
        if not len(self.frame):
            return told
        means = self.frame.groupby(GROUP)["shared"].mean()
        for k, own in means.groupby(level="k"):
            short = sorted({str(label) for _, label, _ in own[own < ENOUGH].index})
            chance = f"K = {k}: two random choices have {int(k) / self.num_images:.0%} in common"
            told.append(f"{chance}; below {ENOUGH:.0%}, hence undersampled: {', '.join(short) or 'none'}")
        return told

    def markdown(self) -> str:
        """The table, with what it is."""
        head = "Two scorings of the same queries by the same model, all noise drawn anew (`bench reliability`)."
        return "\n".join([f"{head}\n", *map(as_markdown, self.tables()), *(f"- {note}" for note in self.notes()), ""])


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """The means over queries as text."""
    found = []
    for (k, label, _), own in frame.groupby(GROUP):
        shared = interval(own["shared"].to_numpy(float))
        bounds = "" if pd.isna(shared.low) else f" [{max(shared.low, 0):.2f}, {min(shared.high, 1):.2f}]"
        numbers = f"{own['spearman'].mean():.2f}", f"{own['seconds'].mean():.1f}", str(own["query"].nunique())
        found.append((int(k), -shared.mean, [str(k), str(label), f"{shared.mean:.2f}{bounds}", *numbers]))
    return [line for *_, line in sorted(found)]


def shared_tops(store: Store) -> dict[tuple[str, int], float]:
    """By digest of a method and K, the mean share of the top K that two scorings have in common; those measured."""
    frame = tables.RELIABILITY.read(store)
    if frame is None:
        return {}
    means = frame.groupby(["method_digest", "k"])["shared"].mean()
    return {(str(digest), int(k)): float(value) for (digest, k), value in means.items()}
