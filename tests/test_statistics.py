"""Statistics against known answers, and the table of results against its dictionary."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.records.rows import COLUMNS
from bench.report.statistics import interval, mean_and_error, p_value


def test_standard_error_is_the_sample_deviation_over_root_n():
    mean, error = mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert math.isnan(mean_and_error([1.0]).standard_error)


def test_the_interval_covers_the_truth_at_its_stated_rate():
    stream = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        shared = stream.normal(size=8) * 10
        found = interval(shared + stream.normal(0.5, 1, 8) - shared)
        covered += found.low <= 0.5 <= found.high
    assert 930 <= covered <= 970


def test_the_interval_is_students():
    values = np.random.default_rng(1).exponential(size=9)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), theirs.low, theirs.high))
    assert p_value(values, 0.7) == pytest.approx(stats.ttest_1samp(values, 0.7).pvalue)


def test_the_p_value_is_five_percent_at_the_bounds_of_the_interval():
    found = interval([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    for bound in (found.low, found.high):
        assert p_value([3.0, 1.0, 4.0, 1.0, 5.0, 9.0], bound) == pytest.approx(0.05)


def test_fewer_than_four_values_have_no_interval_and_no_p_value():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert math.isnan(found.low)
    assert math.isnan(p_value([1.0, 2.0, 3.0]))


def test_equal_values_have_an_interval_of_no_width():
    assert interval([2.0] * 5) == (2.0, 2.0, 2.0)
    assert (p_value([2.0] * 5), p_value([0.0] * 5)) == (0.0, 1.0)


def test_the_data_dictionary_describes_every_column():
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    described = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert {name: (kind, meaning) for name, kind, meaning in described} == COLUMNS
