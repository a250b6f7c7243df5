"""A run that adds queries until an order is settled, at looks that the study has fixed (``bench.report.looks``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from bench.contracts import FLOOR, METHOD, Metric
from bench.errors import InvalidInput
from bench.experiments.leave_k_out import Run, RunReport
from bench.foundation.progress import Progress
from bench.records import rows
from bench.report.looks import ORDERS, Standing, forecast, standings
from bench.studies import Look

ASKED = {
    "all": "every pair of methods, and of a method and a floor",
    "leader": "the method with the best mean against the rest",
    "floors": "each method against each floor",
}
SHOWN_PAIRS = 5
SEEN_SO_FAR = "if the differences are as seen so far, it takes"


@dataclass(frozen=True, eq=False)
class SettledReport(RunReport):
    """What the run gives, and where it stopped.

    Attributes:
        standings: what was known at each look.
        closing: at which look it stopped and why.
    """

    standings: Sequence[Standing]
    closing: Sequence[str]

    def notes(self) -> list[str]:
        """Those of the run, and where it stopped."""
        return [*super().notes(), *self.closing]


@dataclass(frozen=True, kw_only=True)
class UntilSettled(Run):
    """A run whose number of queries is not fixed: more are added, look by look, until an order is settled.

    Each look takes the study's first so many queries, whatever rows the folder holds already, so a run that was
    interrupted goes on where it was and stops where it would have stopped. The order is that of one metric at one K:
    the first metric of the run, the middle one of its K.

    Attributes:
        order: one of ``bench.report.looks.ORDERS``.
        max_queries: the limit; by default all queries of the study. The last look is the last one within it.
    """

    order: str = "all"
    max_queries: int | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InvalidInput(f"--until-settled {self.order}: one of {', '.join(ORDERS)} is expected.")
        if self.held_out:
            raise InvalidInput("Held-out queries are for tuning: no order is settled on them.")
        if not self.looks:
            raise InvalidInput(
                f"--max-queries {self.limit}: the first look of study '{self.study.name}' is at "
                f"{self.study.looks[0].queries} queries."
            )
        super().__post_init__()

    @property
    def limit(self) -> int:
        """The most queries."""
        every = len(self.study.prompts)
        return every if self.max_queries is None else min(every, self.max_queries)

    @property
    def looks(self) -> list[Look]:
        """Those of the study within the limit."""
        return [look for look in self.study.looks if look.queries <= self.limit]

    @property
    def query_count(self) -> int:
        """Those of the look at hand; before there is one, of the last look, as a plan must reckon with it."""
        return self.looks[-1].queries if self.num_queries is None else self.num_queries

    @property
    def judged_k(self) -> int:
        """The K at which the order is asked for."""
        return self.ks[len(self.ks) // 2]

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the run, and the rule by which it stops."""
        rule = {"order": self.order, "k": self.judged_k, "looks": [list(look) for look in self.looks]}
        return super().facts | {"until_settled": rule}

    def execute(self, progress: Progress | None = None) -> SettledReport:
        """Look by look, do what is not done yet, until the order is settled or the limit is reached."""
        found: list[Standing] = []
        for number, look in enumerate(self.looks, 1):
            report = Run.execute(replace(self, num_queries=look.queries), progress)
            found = self.standings(report.frame)
            closing = self._closing(number, found)
            if found and not found[-1].open:
                break
            if progress is not None and number < len(self.looks):
                progress.say(closing[0])
        own = {each.name: getattr(report, each.name) for each in fields(RunReport)}
        return SettledReport(**own, standings=found, closing=closing)

    def standings(self, frame: pd.DataFrame) -> list[Standing]:
        """What ``frame``, rows of this study, tells at each look that it has queries for."""
        metric = self._metric(frame)
        table = self.per_query(frame, metric)
        roles = {self.label(method): method.role for method in self.with_floors}
        methods, floors = (
            [label for label in table if roles[str(label)] == role and table[label].notna().any()]
            for role in (METHOD, FLOOR)
        )
        margin = self.study.margin(metric.name)
        return standings(table, self.looks, order=self.order, methods=methods, floors=floors, margin=margin)

    def per_query(self, frame: pd.DataFrame, metric: Metric) -> pd.DataFrame:
        """Queries × methods, higher is better, in the study's order up to the last query that has a row."""
        wanted = {method.digest: self.label(method) for method in self.with_floors}
        design = "unpaired" if self.pairing == "unpaired" else "paired"
        own = frame[
            (frame["metric"] == metric.name) & (frame["design"] == design) & (frame["k"] == self.judged_k)
            & frame["method_digest"].isin(list(wanted)) & ~frame["method"].isin(rows.NOT_RANKED)
        ]  # fmt: skip
        done = own[own["status"] == "done"].assign(label=own["method_digest"].map(wanted))
        table = done.pivot_table(index="query", columns="label", values="value", aggfunc="mean")
        names = [spec.id for spec in self.study.queries(len(self.study.prompts))]
        reached = [place for place, name in enumerate(names, 1) if name in set(own["query"])]
        return (1.0 if metric.higher_is_better else -1.0) * table.reindex(names[: max(reached, default=0)])

    def _metric(self, frame: pd.DataFrame) -> Metric:
        """The first that could be computed."""
        known = set(frame["metric"])
        return next((metric for metric in self.metrics if metric.name in known), self.metrics[0])

    def _closing(self, number: int, found: Sequence[Standing]) -> list[str]:
        """What the run's ``number``-th look tells: settled, not yet, or not at the limit, and then what stays open."""
        look, last = self.looks[number - 1], number == len(self.looks)
        spent = sum(one.significance for one in self.looks[:number])
        at = f"look {number} of {len(self.study.looks)}, K = {self.judged_k}, error spent {spent:g}"
        if not found or found[-1].look != look:
            return [f"{look.queries} queries ({at}): there is no pair to settle"]
        now = found[-1]
        done = f"{ASKED[self.order]}: {len(now.asked) - len(now.open)} of {len(now.asked)} pairs"
        if not now.open:
            return [f"settled after {look.queries} queries ({at}); {done}"]
        limit = f"at the limit of {self.limit} queries" if last else f"after {look.queries} queries, going on"
        listed = ", ".join(f"{one} and {other}" for one, other in now.open[:SHOWN_PAIRS])
        more = f" and {len(now.open) - SHOWN_PAIRS} more" if len(now.open) > SHOWN_PAIRS else ""
        return [
            f"not settled {limit} ({at}); {done}",
            f"open: {listed}{more}",
            f"{SEEN_SO_FAR} {forecast(now, self.study.looks)} (as `bench plan` with these options says)",
        ]
