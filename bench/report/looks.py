"""An order that is asked for, look by look: when a run may stop adding queries.

Looking again and again until something is settled finds differences that are not there. So the looks are fixed in the
study before the first one (``Study.looks``), each with its share of the error, and the verdicts of a look are tested at
its share. The shares sum to 5 %, so over all looks together a false verdict is no more probable than on one board,
wherever the run stops: in each family of pairs, as on a board (``bench.report.verdicts``). A pair that was settled at
an earlier look stays settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import pandas as pd

from bench.report.statistics import queries_needed
from bench.report.verdicts import EQUIVALENT, UNSETTLED, Verdict, Verdicts, family_verdicts
from bench.studies import Look

ORDERS = ("all", "leader", "floors")
"""Every pair; the method with the highest mean against the rest; each method against each floor."""
Pair = tuple[str, str]


class Standing(NamedTuple):
    """What is known at a look.

    Attributes:
        look: which.
        verdicts: of every pair of the family: as it was settled, else as of this look.
        asked: the pairs that the order is about.
        open: those of them that are neither settled nor equivalent.
    """

    look: Look
    verdicts: Verdicts
    asked: tuple[Pair, ...]
    open: tuple[Pair, ...]


def families(order: str, methods: Sequence[str], floors: Sequence[str]) -> list[list[Pair]]:
    """The pairs that are tested at once: of two methods, and of a method and a floor, each family with the whole error.

    Which method leads is seen in the data, so that is asked of all pairs.
    """
    between = [] if order == "floors" else list(combinations(methods, 2))
    return [family for family in (between, list(product(methods, floors))) if family]


def standings(
    per_query: pd.DataFrame,
    looks: Sequence[Look],
    *,
    order: str,
    methods: Sequence[str],
    floors: Sequence[str],
    margin: float | None = None,
) -> list[Standing]:
    """What was known at each look that ``per_query`` has queries for.

    Args:
        per_query: queries × methods and floors, higher is better, the queries in the study's order; NaN where a value
            is missing.
        looks: of the study.
        order: one of ORDERS.
        margin: of equivalence. It spends no error: it ends the search for what does not matter, each pair alone.
    """
    asked_at_once = families(order, methods, floors)
    pairs = [pair for family in asked_at_once for pair in family]
    settled: Verdicts = {}
    found: list[Standing] = []
    for look in looks if pairs else ():
        if look.queries > len(per_query):
            break
        own = per_query.iloc[: look.queries]
        now: Verdicts = {}
        for family in asked_at_once:
            now |= family_verdicts(own, family, significance=look.significance, margin=margin)
        settled |= {pair: verdict for pair, verdict in now.items() if verdict.settled and pair not in settled}
        now |= settled
        asked = tuple(pairs)
        if order == "leader":
            leader = own[list(methods)].mean().idxmax()
            asked = tuple(pair for pair in pairs if leader in pair)
        unknown = tuple(pair for pair in asked if not now[pair].settled and now[pair].verdict != EQUIVALENT)
        found.append(Standing(look, now, asked, unknown))
    return found


def forecast(standing: Standing, looks: Sequence[Look]) -> str:
    """When the open pairs would be settled if the differences are as seen: a look, or queries beyond the last."""
    stop = next((look for look, done in predicted(standing, looks) if done == len(standing.asked)), None)
    if stop is not None:
        return f"about {stop.queries} queries"
    beyond = f"more than the {looks[-1].queries} of the study's last look"
    needs = {pair: _needed(standing.verdicts[pair], standing, looks[-1]) for pair in standing.open}
    hopeless = [pair for pair, needed in needs.items() if needed is None]
    if hopeless:
        return f"{beyond}; no number can be told for {' and '.join(hopeless[0])}, which hardly differ or lack values"
    slowest = max(needs, key=lambda pair: needs[pair] or 0)
    return f"{beyond}; about {needs[slowest]:,} for {' and '.join(slowest)}, the slowest pair"


def _needed(seen: Verdict, standing: Standing, look: Look) -> int | None:
    """By Student's test at the pair's even share of the error of ``look``; None where it is hopeless."""
    if seen.verdict != UNSETTLED:
        return None
    share = seen.significance * look.significance / standing.look.significance
    return queries_needed(seen.difference, seen.deviation, significance=share)


def predicted(standing: Standing, looks: Sequence[Look]) -> list[tuple[Look, int]]:
    """How many of the asked pairs each later look would settle if the differences are as seen: by Student's test.

    Each pair has an even share of the look's error, which is a cautious plan for the sign flips.
    """
    found = []
    for look in looks:
        if look.queries > standing.look.queries:
            open_still = 0
            for pair in standing.open:
                needed = _needed(standing.verdicts[pair], standing, look)
                open_still += needed is None or needed > look.queries
            found.append((look, len(standing.asked) - open_still))
    return found
