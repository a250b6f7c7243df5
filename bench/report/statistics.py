"""Statistics over queries: means with standard errors, paired differences with intervals, equivalents.

One test says everything about one mean: Student's over queries. ``interval`` holds the means that ``p_value`` does not
reject, for one question asked alone. A verdict asks about many pairs (``bench.report.verdicts``): it needs this p-value
and one that is corrected for all of them, so it implies an interval without zero, while the reverse need not hold.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special

CONFIDENCE = 0.95
MIN_QUERIES = 4
"""Fewer give no interval and no verdict."""
MAX_QUERIES = 100_000
RESAMPLES = 1000
Values = Sequence[float] | np.ndarray


class MeanAndError(NamedTuple):
    """A mean and its standard error, s / sqrt(n); the error of a single value is NaN."""

    mean: float
    standard_error: float


class Interval(NamedTuple):
    """A mean with its two-sided interval; NaN bounds where fewer than MIN_QUERIES values are there."""

    mean: float
    low: float
    high: float

    def __format__(self, number: str) -> str:
        """As in ``f"{found:.2f}"``: 0.41 [0.30, 0.52]; no bounds where there are none, empty without a mean."""
        if math.isnan(self.mean):
            return ""
        bounds = "" if math.isnan(self.low) else f" [{self.low:{number}}, {self.high:{number}}]"
        return f"{self.mean:{number}}{bounds}"


def mean_and_error(values: Values) -> MeanAndError:
    """Mean ± 1 standard error, as the paper reports them."""
    array = np.asarray(values, float)
    error = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else float("nan")
    return MeanAndError(float(array.mean()), error)


def interval(values: Values) -> Interval:
    """The 95 % interval of the mean of ``values``, one for each query: Student's. The only one of a mean.

    It holds the means that ``p_value`` does not reject at 5 %. NaN bounds for fewer than MIN_QUERIES values. Chosen by
    coverage with few, skewed queries of unequal scale: ``benchmarks/intervals.py``, docs/log/2026-11-25-intervals.md.
    """
    array = np.asarray(values, float)
    if len(array) < MIN_QUERIES:
        mean = float(array.mean()) if len(array) else float("nan")
        return Interval(mean, float("nan"), float("nan"))
    mean, error = mean_and_error(array)
    reach = float(special.stdtrit(len(array) - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(mean, mean - reach, mean + reach)


def p_value(values: Values, mean: float = 0.0) -> float:
    """Of Student's two-sided test that the values, one for each query, have this ``mean``. The only one of a mean.

    Below 5 % just where ``interval`` leaves ``mean`` out. NaN for fewer than MIN_QUERIES values.
    """
    array = np.asarray(values, float)
    if len(array) < MIN_QUERIES:
        return float("nan")
    found, error = mean_and_error(array)
    if error == 0:
        return 1.0 if found == mean else 0.0
    return float(2 * special.stdtr(len(array) - 1, -abs(found - mean) / error))


class Won(NamedTuple):
    """How many of how many queries, ties counted half, and the 95 % interval of the share."""

    won: float
    queries: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """NaN where there is no query."""
        return self.won / self.queries if self.queries else float("nan")


def queries_won(differences: Values) -> Won:
    """On how many queries a method is ahead, whatever by how much: one query can carry a mean, but not this.

    The interval is Clopper and Pearson's; NaN bounds for fewer than MIN_QUERIES queries.

    Args:
        differences: one for each query, positive where it is won.
    """
    array = np.asarray(differences, float)
    return share_won((array > 0) + (array == 0) / 2)


def share_won(shares: Values) -> Won:
    """The same of queries that were won (1), lost (0), or shared with others (between them)."""
    count, won = len(shares), float(np.sum(shares))
    if count < MIN_QUERIES:
        return Won(won, count, float("nan"), float("nan"))
    tail = (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(won, count - won + 1, tail)) if won > 0 else 0.0
    high = float(special.betaincinv(won + 1, count - won, 1 - tail)) if won < count else 1.0
    return Won(won, count, low, high)


def resampled_bounds(statistic: Callable[[np.ndarray], float], count: int, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap bounds of what is no mean over queries: an equivalent, a mean of rank correlations.

    Args:
        statistic: of the chosen ones of ``count`` queries or subsets, given by index; NaN does not count.
    """
    return percentile_bounds([statistic(sample) for sample in resamples(count, seed=seed)])


def resamples(count: int, *, seed: int = 0) -> np.ndarray:
    """RESAMPLES × count: that many of ``count`` by index, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def percentile_bounds(drawn: Values) -> tuple[float, float]:
    """95 % percentile bounds of the values of a statistic in resampled data; NaN does not count."""
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def queries_needed(
    effect: float, deviation: float, *, significance: float = 1 - CONFIDENCE, power: float = 0.8
) -> int | None:
    """The smallest n at which Student's paired two-sided test finds ``effect`` with probability ``power``.

    n ≥ ((t_(1 − significance/2) + t_power) · deviation / effect)², quantiles with n − 1 degrees of freedom.

    Args:
        effect: true mean difference.
        deviation: standard deviation of the differences over queries, in the same unit.

    Returns:
        None where more than MAX_QUERIES would be needed.
    """
    if deviation == 0:
        return MIN_QUERIES if effect else None

    def suffices(count: int) -> bool:
        quantiles = special.stdtrit(count - 1, [1 - significance / 2, power])
        return bool(np.sqrt(count) * abs(effect) >= quantiles.sum() * deviation)

    if not suffices(MAX_QUERIES):
        return None
    return bisect.bisect_left(range(MAX_QUERIES), True, lo=MIN_QUERIES, key=suffices)


class Equivalent(NamedTuple):
    """How many random images must be removed for the same loss change (the paper, section 5.1).

    Attributes:
        images: on the piecewise linear, monotone curve; NaN where the change lies outside it.
        low, high: ``resampled_bounds`` over queries; NaN where it cannot be told.
        outside: "", "below" or "above": the curve is never extrapolated.
        end: of the curve, beyond which it lies; NaN where it is on the curve.
    """

    images: float
    low: float
    high: float
    outside: str
    end: float = float("nan")

    def left(self, num_images: int) -> Left:
        """The same, told by what is left of ``num_images``."""
        outside = {"below": "more", "above": "fewer"}.get(self.outside, "")
        images, low, high = num_images - self.images, num_images - self.high, num_images - self.low
        return Left(images, low, high, outside, num_images - self.end)


class Left(NamedTuple):
    """A model is as bad as one that was trained on so many random images: what is left where ``Equivalent`` ones go.

    Attributes:
        images, low, high: NaN as there.
        outside: "", "more" or "fewer" than the curve tells of.
        end: of the curve, beyond which it lies; NaN where it is on the curve.
    """

    images: float
    low: float
    high: float
    outside: str
    end: float

    @property
    def text(self) -> str:
        """As in: 170 [140, 250]; fewer than 60; "" where nothing is known."""
        if self.outside:
            return f"{self.outside} than {self.end:.0f}"
        if math.isnan(self.images):
            return ""
        return f"{self.images:.0f}" + ("" if math.isnan(self.low) else f" [{self.low:.0f}, {self.high:.0f}]")


def equivalent_random(changes: Values, curve: pd.DataFrame, *, seed: int = 0) -> Equivalent:
    """Where the mean of ``changes`` meets the random reference.

    Args:
        changes: of one method at one K, a value for each query, in the order of the curve's columns.
        curve: K × queries, the mean change of the random reference at each K (ascending index).
        seed: of the resampled queries (of method and curve together) that the bounds come from.
    """
    values, reference = np.asarray(changes, float), curve.to_numpy(float)
    counts = curve.index.to_numpy(float)
    images, outside = _inverse(counts, reference.mean(1), float(values.mean()))
    ends = {"below": counts[0], "above": counts[-1]}
    end = float(ends.get(outside, float("nan")))
    if len(values) < MIN_QUERIES:
        return Equivalent(images, float("nan"), float("nan"), outside, end)

    def resampled(chosen: np.ndarray) -> float:
        found, where = _inverse(counts, reference[:, chosen].mean(1), float(values[chosen].mean()))
        return float(ends.get(where, found))

    low, high = resampled_bounds(resampled, len(values), seed=seed)
    return Equivalent(images, low, high, outside, end)


def _inverse(counts: np.ndarray, means: np.ndarray, value: float) -> tuple[float, str]:
    """The count at which the monotone curve through ``means`` reaches ``value``."""
    rising = optimize.isotonic_regression(means).x
    if value < rising[0]:
        return float("nan"), "below"
    if value > rising[-1]:
        return float("nan"), "above"
    steps, first = np.unique(rising, return_index=True)
    return float(np.interp(value, steps, counts[first])), ""
