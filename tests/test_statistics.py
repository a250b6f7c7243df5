"""Statistics against known answers, and the table of results against its dictionary."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from bench.records.rows import COLUMNS
from bench.report.statistics import mean_and_error, paired_interval


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
        interval = paired_interval(shared + stream.normal(0.5, 1, 8), shared)
        covered += interval.low <= 0.5 <= interval.high
    assert 930 <= covered <= 970


def test_pairing_removes_what_queries_share():
    shared = np.array([0.0, 10.0, 20.0, 30.0])
    interval = paired_interval(shared + np.array([1.0, 1.1, 0.9, 1.0]), shared)
    assert 0.8 < interval.low < 1 < interval.high < 1.2


def test_one_pair_has_no_interval():
    interval = paired_interval([1.0], [0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low)


def test_the_data_dictionary_describes_every_column():
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    described = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert {name: (kind, meaning) for name, kind, meaning in described} == COLUMNS
