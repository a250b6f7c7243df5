"""The best measured set: what is chosen, on whose seeds it is valued, and by how much chance alone flatters it."""

import math

import numpy as np
import pandas as pd
import pytest

from bench.report.ceilings import best_sets, largest_normal


def rows(values, seed=1):
    """Rows of label → one value for each query."""
    return pd.DataFrame(
        [
            {"label": label, "query": f"q{number:02d}", "seed": seed, "value": value}
            for label, own in values.items()
            for number, value in enumerate(own)
        ]
    )


def test_each_query_has_the_best_of_the_methods_sets_and_no_other():
    found = best_sets(rows({"a": [1.0, 5.0], "b": [4.0, 2.0], "carriers": [9.0, 9.0]}), ["a", "b"])
    assert dict(found.by_query) == {"q00": 4.0, "q01": 5.0}
    assert (found.most, found.fair) == (2, False)
    lowest = best_sets(rows({"a": [1.0, 5.0], "b": [4.0, 2.0]}), ["a", "b"], higher_is_better=False)
    assert dict(lowest.by_query) == {"q00": 1.0, "q01": 2.0}
    assert best_sets(rows({"a": [1.0, 5.0]}), ["a"]) is None


def test_with_several_seeds_a_set_is_valued_under_another_seed_than_it_is_chosen_under():
    both = pd.concat([rows({"a": [3.0], "b": [1.0]}, 1), rows({"a": [0.0], "b": [2.0]}, 2)])
    found = best_sets(both, ["a", "b"])
    # Under seed 1 a leads, worth 0 under seed 2; under seed 2 b leads, worth 1 under seed 1.
    assert dict(found.by_query) == {"q00": 0.5}
    assert (found.fair, found.flattered) == (True, 0.0)
    lacking = best_sets(both.iloc[:-1], ["a", "b"])
    assert not lacking.fair


def test_sets_that_differ_by_noise_alone_are_flattered_by_no_more_than_is_said():
    rng, labels = np.random.default_rng(0), [f"m{number}" for number in range(9)]
    plain, fair, bounds = [], [], []
    for _ in range(60):
        noisy = [rows({name: rng.normal(size=8) for name in (*labels, "random")}, seed) for seed in (1, 2)]
        one = best_sets(noisy[0], labels)
        plain.append(one.by_query.mean())
        bounds.append(one.flattered)
        fair.append(best_sets(pd.concat(noisy), labels).by_query.mean())
    assert np.mean(plain) == pytest.approx(largest_normal(9), abs=0.1)
    assert np.mean(plain) <= np.mean(bounds) + 0.1
    assert abs(np.mean(fair)) < 0.15  # the truth is 0
    assert math.isnan(best_sets(rows({"a": [1.0], "b": [2.0]}), ["a", "b"]).flattered)  # no random to tell the noise


def test_the_mean_of_the_largest_of_normal_numbers():
    assert largest_normal(1) == pytest.approx(0, abs=1e-9)
    assert largest_normal(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-6)
    draws = np.random.default_rng(1).normal(size=(20000, 9)).max(1)
    assert largest_normal(9) == pytest.approx(draws.mean(), abs=0.02)
