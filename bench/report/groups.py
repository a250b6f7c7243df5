"""Groups of images: does a method name the group without which the query's loss rises most? Tables of the lines kept.

Each line of the table ``groups`` holds one group's score by a method beside the measured loss change without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bench.records import tables
from bench.records.store import Store
from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import Won, interval, share_won

ABOUT = (
    "Each group was left out of the training once; the truth is how much the query's loss rose. A method's score of a "
    "group is an aggregate of its scores of the group's images, chosen on held-out queries. Agreement: Spearman's ρ "
    "over groups, a mean over queries with Student's 95 % interval; and on how many queries the method ranks the group "
    "first that mattered most, with the exact 95 % interval of that share."
)
HEAD = ("groups", "method", "aggregate", "Spearman's ρ over groups [95 % interval]", "same group first", "queries")


def agreement_of(lines: pd.DataFrame) -> pd.DataFrame:
    """For each query of one method's ``lines``: ``spearman`` over groups, ``first`` (1 where the same group leads).

    Groups whose training failed are left out. Where a method ties several groups for the first place, ``first`` is the
    chance of the right one among them; a method that scores all groups alike has ρ = 0.
    """
    found = []
    for query, own in lines.dropna(subset=["change"]).groupby("query", sort=True):
        scores, changes = own["score"].to_numpy(float), own["change"].to_numpy(float)
        varied = len(own) > 2 and np.ptp(scores) > 0 and np.ptp(changes) > 0
        rho = float(stats.spearmanr(scores, changes).statistic) if varied else 0.0
        leading = scores == scores.max()
        found.append((query, rho, float(leading[changes.argmax()]) / leading.sum(), len(own)))
    return pd.DataFrame(found, columns=["query", "spearman", "first", "groups"])


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Of reported queries: groups, label, aggregate, rho (Interval), first (Won), chance, best ρ first."""
    lines = []
    reported = frame[~frame["held_out"].astype(bool)]
    for (groups, label, _, seeds), own in reported.groupby(["groups", "label", "method_digest", "seeds"], sort=False):
        per_query = agreement_of(own)
        if len(per_query):
            kept = interval(per_query["spearman"].to_numpy()), share_won(per_query["first"].to_numpy())
            chance = float((1 / per_query["groups"]).mean())
            lines.append((groups, label, own["aggregate"].iloc[0], *kept, chance, int(own["group"].nunique()), seeds))
    columns = ["groups", "label", "aggregate", "rho", "first", "chance", "count", "seeds"]
    table = pd.DataFrame(lines, columns=columns)
    order = table["rho"].map(lambda found: -found.mean)
    return table.assign(order=order).sort_values(["groups", "order"], ignore_index=True).drop(columns="order")


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupsReport(ReportOnMethods):
    """What was found.

    Attributes:
        frame: one line for each method, query and group, of all runs in the folder, with its label.
    """

    frame: pd.DataFrame

    def tables(self) -> list[Table]:
        """Agreement of each method with the truth; the groups that mattered most for each query."""
        return [agreement_table(self.frame), truth_table(self.frame)] if len(self.frame) else []

    def notes(self) -> list[str]:
        """What was skipped, and what chance gives."""
        told = super().notes()
        if not len(self.frame):
            return told
        one_each = summary(self.frame).drop_duplicates("groups")
        return told + [
            f"{line.groups}: {line.count} groups, so chance ranks the right one first on {line.chance:.0%} of queries"
            for line in one_each.itertuples()
        ]

    def markdown(self) -> str:
        """The tables, with what they are."""
        return "\n".join([f"{ABOUT}\n", *map(as_markdown, self.tables()), *(f"- {note}" for note in self.notes()), ""])


def agreement_table(frame: pd.DataFrame) -> Table:
    """``summary`` for people."""
    return HEAD, [
        [str(line.groups), str(line.label), str(line.aggregate), f"{line.rho:+.2f}", _first(line.first),
         str(line.first.queries)]
        for line in summary(frame).itertuples()
    ]  # fmt: skip


def truth_table(frame: pd.DataFrame) -> Table:
    """For each reported query the group without which its loss rises most, and the next."""
    own = frame[~frame["held_out"].astype(bool)].dropna(subset=["change"])
    lines = []
    for (groups, query), each in (
        own.sort_values("seeds").drop_duplicates(["groups", "query", "group"], keep="last").groupby(["groups", "query"])
    ):
        first, *others = each.sort_values("change", ascending=False)[["group", "images", "change"]].to_numpy().tolist()
        cells = [f"{name} ({count} images): {change:+.5f}" for name, count, change in (first, *others[:1])]
        lines.append([str(groups), str(query), *cells, *[""] * (2 - len(cells))])
    return ("groups", "query", "loss change without the group that mattered most", "without the next"), lines


def kept_tables(store: Store) -> list[Table]:
    """Those of a results folder; none where no groups were left out."""
    return GroupsReport(frame=tables.GROUPS.labelled(store)).tables()


def _first(found: Won) -> str:
    bounds = "" if np.isnan(found.low) else f" [{found.low:.0%}, {found.high:.0%}]"
    return f"{found.won:g} of {found.queries}{bounds}"
