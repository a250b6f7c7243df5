"""What unlearning forgot of the query and of other prompts, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench.report.shown import Report, Table, as_markdown
from bench.report.statistics import Interval, interval

HEAD = (
    "metric", "method", "the query [95 % interval]", "other prompts [95 % interval]",
    "minus other prompts [95 % interval]", "queries",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ForgettingReport(Report):
    """What was found.

    Attributes:
        frame: one line for each method, query, prompt looked at ("" for the query's own) and metric, with its label.
        skipped, failures: methods and metrics that were left out, with the reason.
    """

    frame: pd.DataFrame
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """A line for each metric and method."""
        return [(HEAD, cells(self.frame))] if len(self.frame) else []

    def notes(self) -> list[str]:
        """What was skipped, and how to read it."""
        told = [f"skipped {name}: {why}" for name, why in self.skipped.items()]
        return [*told, "good unlearning changes the query and leaves other prompts as they were"]

    def problems(self) -> list[str]:
        """What failed."""
        return [f"{name} failed: {why}" for name, why in self.failures.items()]

    def markdown(self) -> str:
        """The table, with what it is."""
        head = "The query unlearned, nothing retrained: what the unlearned model lost (`bench forgetting`)."
        return "\n".join([f"{head}\n", *map(as_markdown, self.tables())])


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """Means over queries as text; of other prompts the mean for each query first."""
    found = []
    for (metric, label, _), rows in frame.groupby(["metric", "label", "method_digest"]):
        own = rows[rows["other"] == ""].set_index("query")["value"]
        others = rows[rows["other"] != ""].groupby("query")["value"].mean().reindex(own.index)
        shown = [_bounded(interval(part.to_numpy(float))) for part in (own, others, own - others)]
        found.append([str(metric), str(label), *shown, str(len(own))])
    return found


def _bounded(found: Interval) -> str:
    """As in: 0.41 [0.30, 0.52]; without an interval where there are too few queries."""
    if np.isnan(found.mean):
        return ""
    return f"{found.mean:.3g}" + ("" if np.isnan(found.low) else f" [{found.low:.3g}, {found.high:.3g}]")
