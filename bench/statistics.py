"""Statistics over queries: means with standard errors, and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
Values = Sequence[float] | np.ndarray


class MeanAndError(NamedTuple):
    """A mean and its standard error, s / sqrt(n); the error of a single value is NaN."""

    mean: float
    standard_error: float


class Interval(NamedTuple):
    """A mean difference with its two-sided interval; NaN bounds where fewer than two pairs are there."""

    mean: float
    low: float
    high: float


def mean_and_error(values: Values) -> MeanAndError:
    """Mean ± 1 standard error, as the paper reports them."""
    array = np.asarray(values, float)
    error = float(stats.sem(array)) if len(array) > 1 else float("nan")
    return MeanAndError(float(array.mean()), error)


def paired_interval(values: Values, baseline: Values) -> Interval:
    """Student's 95 % interval of the mean of the differences, query by query."""
    difference = np.asarray(values, float) - np.asarray(baseline, float)
    if len(difference) < 2 or np.ptp(difference) == 0:
        same = float(difference.mean()) if len(difference) > 1 else float("nan")
        return Interval(float(difference.mean()), same, same)
    bounds = stats.ttest_1samp(difference, 0.0).confidence_interval(CONFIDENCE)
    return Interval(float(difference.mean()), float(bounds.low), float(bounds.high))
