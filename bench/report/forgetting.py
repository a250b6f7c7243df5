"""What unlearning forgot of the query and of other prompts, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import interval

ABOUT = (
    "The query unlearned, nothing retrained: what the unlearned model lost of the query, and of other prompts, which "
    "good unlearning leaves as they were. Each interval is Student's over queries, 95 %, alone."
)
HEAD = (
    "metric", "method", "the query [95 % interval]", "other prompts [95 % interval]",
    "minus other prompts [95 % interval]", "queries",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class ForgettingReport(ReportOnMethods):
    """What was found.

    Attributes:
        frame: one line for each method, query, prompt looked at ("" for the query's own) and metric, with its label.
    """

    frame: pd.DataFrame

    def tables(self) -> list[Table]:
        """A line for each metric and method."""
        return [(HEAD, cells(self.frame))] if len(self.frame) else []

    def notes(self) -> list[str]:
        """What was skipped, and how to read it."""
        told = super().notes()
        return [*told, "good unlearning changes the query and leaves other prompts as they were"]

    def markdown(self) -> str:
        """The table, with what it is."""
        return "\n".join([f"{ABOUT}\n", *map(as_markdown, self.tables())])


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """Means over queries as text; of other prompts the mean for each query first."""
    found = []
    for (metric, label, _), rows in frame.groupby(["metric", "label", "method_digest"]):
        own = rows[rows["other"] == ""].set_index("query")["value"]
        others = rows[rows["other"] != ""].groupby("query")["value"].mean().reindex(own.index)
        shown = [f"{interval(part.to_numpy(float)):.3g}" for part in (own, others, own - others)]
        found.append([str(metric), str(label), *shown, str(len(own))])
    return found
