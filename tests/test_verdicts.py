"""Statistical code against known answers."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.report.statistics import equivalent_random, interval, queries_needed, verdicts


def simulated(rng, shifts, queries=20):
    shared = rng.normal(size=(queries, 1))
    return pd.DataFrame(
        shared + rng.normal(size=(queries, len(shifts))) + np.array(shifts), columns=list("abcd"[: len(shifts)])
    )


def test_equal_methods_are_indistinguishable():
    rng = np.random.default_rng(0)
    quiet = sum(
        all(found.verdict == "indistinguishable" for found in verdicts(simulated(rng, [0, 0, 0], 8)).values())
        for _ in range(1000)
    )
    assert quiet >= 940


def test_a_known_effect_is_called_right_at_the_stated_rate():
    rng = np.random.default_rng(1)
    count = queries_needed(1.0, np.sqrt(2.0))
    called = [verdicts(simulated(rng, [1.0, 0.0], count))["a", "b"].verdict for _ in range(1000)]
    assert 0.77 <= called.count("better") / 1000 <= 0.85
    assert called.count("worse") == 0


def test_the_direction_of_the_metric_counts():
    frame = simulated(np.random.default_rng(2), [9.0, 0.0])
    assert verdicts(frame)["a", "b"].verdict == "better"
    assert verdicts(frame, higher_is_better=False)["a", "b"].verdict == "worse"


def test_too_few_queries_give_no_verdict_and_no_interval():
    frame = simulated(np.random.default_rng(3), [9.0, 0.0], queries=3)
    assert verdicts(frame)["a", "b"].verdict == "too few queries"
    assert np.isnan(interval([1.0, 2.0, 3.0]).low)


def test_a_missing_figure_leaves_out_its_query_alone():
    frame = simulated(np.random.default_rng(4), [1.0, 0.0])
    frame.iloc[0, 0] = np.nan
    assert verdicts(frame)["a", "b"].queries == 19


def test_holm_is_applied_to_all_pairs():
    frame = simulated(np.random.default_rng(5), [0.9, 0.0, 0.1, 0.2], queries=12)
    pairs = verdicts(frame)
    raw = {pair: stats.ttest_rel(frame[pair[0]], frame[pair[1]]).pvalue for pair in pairs}
    smallest = min(raw, key=raw.get)
    assert pairs[smallest].p_value == pytest.approx(min(1.0, 6 * raw[smallest]))
    assert all(pairs[pair].p_value >= raw[pair] for pair in pairs)


def test_variants_are_a_family_of_their_own():
    frame = simulated(np.random.default_rng(6), [0.9, 0.0, 0.1, 0.2], queries=12)
    alone = verdicts(frame[["a", "b"]])["a", "b"]
    found = verdicts(frame, variants=["c", "d"])
    assert found["a", "b"] == alone
    raw = {pair: stats.ttest_rel(frame[pair[0]], frame[pair[1]]).pvalue for pair in found if pair != ("a", "b")}
    smallest = min(raw, key=raw.get)
    assert len(raw) == 5
    assert found[smallest].p_value == pytest.approx(min(1.0, 5 * raw[smallest]))


def test_queries_needed_agrees_with_a_simulation():
    count = queries_needed(0.5, 1.0)
    assert count == 34  # the textbook's answer for d = 0.5, 5 %, power 0.8, two-sided, paired
    assert queries_needed(0.0, 1.0) is None


def test_a_verdict_implies_an_interval_without_zero():
    rng = np.random.default_rng(7)
    settled = 0
    for _ in range(100):
        frame = simulated(rng, [0.9, 0.0, 0.4, 0.2], queries=12)
        for (one, other), found in verdicts(frame).items():
            bounds = interval((frame[one] - frame[other]).to_numpy())
            assert found.difference == pytest.approx(bounds.mean)
            if found.verdict != "indistinguishable":
                settled += 1
                assert bounds.low > 0 if found.verdict == "better" else bounds.high < 0
    assert settled > 30  # of 600: enough of them to say something


def test_two_methods_alone_are_settled_just_where_their_interval_excludes_zero():
    rng = np.random.default_rng(8)
    for _ in range(100):
        frame = simulated(rng, [0.6, 0.0], queries=8)
        bounds = interval((frame["a"] - frame["b"]).to_numpy())
        assert (bounds.low > 0 or bounds.high < 0) == (verdicts(frame)["a", "b"].verdict != "indistinguishable")


def test_equivalent_random_reads_the_monotone_curve_and_never_beyond_it():
    queries = [f"q{i}" for i in range(6)]
    curve = pd.DataFrame([[0.0] * 6, [1.0] * 6, [0.8] * 6, [2.0] * 6], index=[0, 100, 200, 400], columns=queries)
    half = equivalent_random([0.45] * 6, curve)
    assert half.images == pytest.approx(50.0)
    assert (half.low, half.high) == pytest.approx((50.0, 50.0))
    late = equivalent_random([1.45] * 6, curve)
    assert 200 < late.images < 400
    assert equivalent_random([3.0] * 6, curve).outside == "above"
    assert np.isnan(equivalent_random([3.0] * 6, curve).images)
    assert equivalent_random([-1.0] * 6, curve).outside == "below"
