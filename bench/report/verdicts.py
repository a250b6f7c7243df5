"""Verdicts: who is better than whom, for all pairs of a family at once.

The test is the studentized sign-flip max-T, step-down (Westfall and Young, 1993): where two methods are equal, the sign
of a query's difference is a coin's. The signs of whole queries are flipped, for all pairs of a family alike, so that
what the pairs have in common is used and not paid for. A pair is settled where this corrected p-value **and** Student's
own are below the significance, so a verdict never contradicts the printed interval (``bench.report.statistics``); the
printed p-value is the larger of both. Chosen in a simulation: docs/log/2026-11-25-verdicts.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.report.statistics import CONFIDENCE, MIN_QUERIES, Interval, interval, p_value, queries_needed

EXACT_QUERIES = 13
"""Up to these all 2^(n − 1) flips are made (the other half mirrors them), beyond them FLIPS seeded ones."""
FLIPS = 10_000
FEWEST_SETTLED = 6
"""Queries, at 5 %: the smallest p-value of n queries is 2^(1 − n)."""
BETTER, WORSE, EQUIVALENT, UNSETTLED, TOO_FEW = "better", "worse", "equivalent", "not settled", "too few queries"
OPPOSITE = {BETTER: WORSE, WORSE: BETTER}


class Verdict(NamedTuple):
    """How two methods compare.

    Attributes:
        difference: mean over common queries of the first minus the second, positive where the first is better.
        p_value: the larger of the family's corrected one (``max_t``) and of Student's for this pair alone.
        verdict: "better" or "worse"; else "equivalent" where the interval of the difference lies inside the margin;
            else "not settled", or "too few queries".
        queries: how many both have.
        deviation: standard deviation of the differences over queries.
        significance: of a test of this pair alone, its family's shared out evenly; for ``queries_needed``.
    """

    difference: float
    p_value: float
    verdict: str
    queries: int
    deviation: float
    significance: float

    @property
    def settled(self) -> bool:
        """Whether one is better than the other."""
        return self.verdict in OPPOSITE

    @property
    def queries_needed(self) -> int | None:
        """How many queries would settle a difference as large as this one; None where it is settled or hopeless.

        A plan by Student's test at the pair's even share of the error: the sign flips need about as many or fewer.
        """
        if self.verdict != UNSETTLED:
            return None
        planned = queries_needed(self.difference, self.deviation, significance=self.significance)
        return None if planned is None else max(planned, FEWEST_SETTLED)


Verdicts = dict[tuple[str, str], Verdict]


def families(
    names: Collection[str], *, floors: Collection[str] = (), apart: Collection[str] = ()
) -> list[list[tuple[str, str]]]:
    """All pairs of ``names`` in at most three families, each with the whole error and corrected on its own.

    The pairs of methods; those that a floor is in; those that one of ``apart``, a variant or a ceiling, is in. So
    neither a floor nor a variant makes a verdict between two methods harder.
    """
    asked: dict[int, list[tuple[str, str]]] = {0: [], 1: [], 2: []}
    for pair in itertools.combinations(names, 2):
        asked[2 if not set(pair).isdisjoint(apart) else 1 if not set(pair).isdisjoint(floors) else 0].append(pair)
    return [family for family in asked.values() if family]


def verdicts(
    per_query: pd.DataFrame,
    *,
    floors: Collection[str] = (),
    apart: Collection[str] = (),
    higher_is_better: bool = True,
    significance: float = 1 - CONFIDENCE,
    margin: float | None = None,
) -> Verdicts:
    """A verdict for every pair of methods.

    Args:
        per_query: queries × methods, NaN where a value is missing.
        floors, apart: those whose pairs are families of their own (``families``).
        higher_is_better: direction of the metric.
        significance: probability of calling any pair of equal methods of a family different (family-wise).
        margin: a difference that does not matter (``Study.margins``); None where no size is known to be one.
    """
    sign = 1.0 if higher_is_better else -1.0
    asked = families(list(per_query.columns), floors=floors, apart=apart)
    return {
        pair: found
        for pairs in asked
        for pair, found in family_verdicts(sign * per_query, pairs, significance=significance, margin=margin).items()
    }


def family_verdicts(
    per_query: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    significance: float = 1 - CONFIDENCE,
    margin: float | None = None,
) -> Verdicts:
    """The verdicts on ``pairs``, corrected for these alone; higher values are better."""
    place = {name: index for index, name in enumerate(per_query.columns)}
    ones, others = zip(*([place[name] for name in pair] for pair in pairs), strict=True)
    values = per_query.to_numpy(float)
    differences = values[:, ones] - values[:, others]
    found = {}
    for pair, own, corrected in zip(pairs, differences.T, max_t(differences), strict=True):
        known = own[~np.isnan(own)]
        mean = float(known.mean()) if len(known) else float("nan")
        combined = max(float(corrected), p_value(known)) if len(known) >= MIN_QUERIES else float("nan")
        word = BETTER if mean > 0 else WORSE
        if len(known) < MIN_QUERIES:
            word = TOO_FEW
        elif not combined < significance:
            word = EQUIVALENT if margin is not None and _inside(interval(known), margin) else UNSETTLED
        deviation = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
        found[pair] = Verdict(mean, combined, word, len(known), deviation, significance / len(pairs))
    return found


def _inside(bounds: Interval, margin: float) -> bool:
    """Whether the difference is small for sure: 95 % for each pair alone."""
    return -margin <= bounds.low and bounds.high <= margin


def verdict_of(found: Mapping[tuple[str, str], Verdict], one: str, other: str) -> str | None:
    """The verdict on ``one`` against ``other``, whichever stands first; None where there is none."""
    if (one, other) in found:
        return found[one, other].verdict
    word = found[other, one].verdict if (other, one) in found else None
    return None if word is None else OPPOSITE.get(word, word)


def beats(found: Mapping[tuple[str, str], Verdict], one: str, other: str) -> bool:
    """Whether ``one`` is settled as better than ``other``."""
    return verdict_of(found, one, other) == BETTER


def rank_sets(
    found: Mapping[tuple[str, str], Verdict], names: Iterable[str], competing: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """The ranks among those ``competing`` that each of ``names`` may have by the settled pairs: first and last.

    The first is 1 + the number of those that beat it; the last leaves room below for those that it beats.
    """
    sets = {}
    for name in names:
        rivals = [rival for rival in competing if rival != name]
        above = sum(beats(found, rival, name) for rival in rivals)
        below = sum(beats(found, name, rival) for rival in rivals)
        sets[name] = (1 + above, 1 + len(rivals) - below)
    return sets


def groups(found: Mapping[tuple[str, str], Verdict], competing: Sequence[str]) -> list[list[str]]:
    """Those that nobody beats, then those that nobody of the rest beats, and so on; ``competing`` gives the order."""
    rest, parts = list(competing), []
    while rest:
        unbeaten = [name for name in rest if not any(beats(found, rival, name) for rival in rest)]
        part = unbeaten or rest  # in a circle, which missing values can make, nobody is
        parts.append(part)
        rest = [name for name in rest if name not in part]
    return parts


def unsettled_sets(found: Mapping[tuple[str, str], Verdict], competing: Sequence[str]) -> list[list[str]]:
    """Every largest set in which no pair is settled, in the order of ``competing``; those of one alone too."""
    order = {name: place for place, name in enumerate(competing)}
    linked = {
        name: {rival for rival in competing if rival != name}
        - {rival for rival in competing if beats(found, name, rival) or beats(found, rival, name)}
        for name in competing
    }
    sets: list[list[str]] = []

    def extend(chosen: set[str], candidates: set[str], done: set[str]) -> None:
        """Bron and Kerbosch (1973), with a pivot."""
        if not candidates and not done:
            sets.append(sorted(chosen, key=order.__getitem__))
            return
        pivot = max(candidates | done, key=lambda name: (len(candidates & linked[name]), -order[name]))
        for name in sorted(candidates - linked[pivot], key=order.__getitem__):
            extend(chosen | {name}, candidates & linked[name], done & linked[name])
            candidates, done = candidates - {name}, done | {name}

    extend(set(), set(competing), set())
    return sorted(sets, key=lambda names: [order[name] for name in names])


def max_t(differences: np.ndarray) -> np.ndarray:
    """The p-value of each column's mean, two-sided, corrected for all columns: sign-flip max-T, step-down.

    Exact where the differences are symmetric about zero under the hypothesis, whatever their scales and however the
    columns hang together (skewed ones are in the simulation). Columns of different length are put on one scale by
    Wallace's normal equivalent (1959) of their t.

    Args:
        differences: queries × pairs; NaN where one of a pair lacks the query, and it is left out of that pair alone.

    Returns:
        One for each pair; NaN where it has fewer than MIN_QUERIES queries.
    """
    known = ~np.isnan(differences)
    counts, corrected = known.sum(0), np.full(differences.shape[1], np.nan)
    [asked] = np.nonzero(counts >= MIN_QUERIES)
    if not len(asked):
        return corrected
    values = np.where(known, differences, 0.0)[:, asked]
    values = values[known[:, asked].any(1)]
    size = np.sqrt((values**2).sum(0) * counts[asked])
    values = values / np.where(size > 0, size, 1.0)
    flipped = _extremity(flips(len(values)) @ values, counts[asked])
    observed = flipped[0]
    order = np.argsort(-observed, kind="stable")
    largest = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]  # over the pair and all less extreme ones
    shares = (largest >= observed[order] * (1 - 1e-8)).mean(0)
    corrected[asked[order]] = np.maximum.accumulate(shares)
    return corrected


def _extremity(cosines: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A rising function of |t|: of t² = (n − 1) r² / (1 − r²), r = Σd / √(n Σd²), which alone a flip changes."""
    freedom = counts - 1
    scale = freedom * ((8 * freedom + 1) / (8 * freedom + 3)) ** 2
    squares = np.minimum(cosines**2, 1 - 1e-9)
    return np.asarray(-scale * np.log1p(-squares))


@lru_cache(maxsize=8)
def flips(count: int) -> np.ndarray:
    """Signs: flips × queries, the first without any; all that differ up to EXACT_QUERIES, else FLIPS drawn ones."""
    if count <= EXACT_QUERIES:
        bits = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
    else:
        bits = np.random.default_rng(count).integers(0, 2, (FLIPS, count))
        bits[0] = 0
    return 1.0 - 2.0 * bits
