"""The linear datamodeling score against known answers, its subsets, and the command on the tiny study."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

from bench import metrics
from bench.errors import InvalidInput
from bench.experiments.datamodels import DatamodelTest, subset
from bench.records import folder
from bench.registry import methods
from bench.report.datamodels import agreement, spearman, subset_interval, summary, sums_of
from bench.studies import study
from cli import main


def test_spearman_is_scipys_with_ties_and_nan_where_constant():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, (30, 4)).astype(float), rng.normal(size=(30, 4))
    expected = [stats.spearmanr(one[:, i], other[:, i]).statistic for i in range(4)]
    np.testing.assert_allclose(spearman(one, other), expected)
    one[:, 1] = 3.0
    assert np.isnan(spearman(one, other)[1])


def test_scores_that_make_the_losses_are_found_and_chance_is_near_zero():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(3, 200))
    kept = np.stack([rng.permutation(200) < 100 for _ in range(64)])
    sums = kept @ scores.T
    gains = sums + rng.normal(0, 0.1 * sums.std(), sums.shape)
    assert subset_interval(sums, gains).low > 0.9
    chance = subset_interval(kept @ rng.normal(size=(200, 3)), gains)
    assert chance.low < 0 < chance.high
    assert subset_interval(sums, -gains).mean < -0.9
    assert math.isnan(subset_interval(sums[:5], gains[:5]).low)


def test_the_interval_covers_the_truth_at_its_stated_rate():
    rng, covered = np.random.default_rng(2), 0
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman of a normal pair with correlation 0.6
    for _ in range(30):
        one = rng.normal(size=(64, 2))
        other = 0.6 * one + 0.8 * rng.normal(size=(64, 2))
        interval = subset_interval(one, other)
        covered += interval.low <= truth <= interval.high
    assert covered >= 25


def planted(noises: dict[str, float], *, queries: int = 8, subsets: int = 40) -> pd.DataFrame:
    """Lines of methods whose sums are the losses with the sign turned plus noise."""
    rng = np.random.default_rng(3)
    changes = rng.normal(size=(subsets, queries))
    lines = [
        {"label": label, "seeds": 1, "query": f"q{query}", "subset": f"s{subset:02d}",
         "sum": noise * rng.normal() - changes[subset, query], "change": changes[subset, query]}
        for label, noise in noises.items()
        for query in range(queries)
        for subset in range(subsets)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def test_the_table_ranks_planted_noise_and_leaves_out_subsets_without_a_loss():
    frame = planted({"much": 4.0, "none": 0.0, "some": 1.0})
    table = summary(frame)
    assert list(table["method"]) == ["none", "some", "much"]
    assert table["lds"][0] == table["low"][0] == 1
    assert (table["subsets"].eq(40) & table["queries"].eq(8)).all()
    frame.loc[(frame["subset"] == "s07") & (frame["query"] == "q2"), "change"] = float("nan")
    assert summary(frame)["subsets"].eq(39).all()
    twice = frame.assign(seeds=2, sum=-frame["sum"])
    assert summary(pd.concat([twice, frame]))["lds"].max() < 0  # of two runs the one that averages more trainings
    assert sums_of(frame.head(1)) == {}


def test_agreement_of_lds_with_removals_is_that_of_the_means():
    noises = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 2.0, "e": 5.0}
    frame = planted(noises)
    rng = np.random.default_rng(4)
    removals = pd.DataFrame(
        {name: 1 / (1 + noise) + rng.normal(0, 0.01, 9) for name, noise in noises.items()} | {"not in it": 0.0},
        index=[f"q{number}" for number in range(9)],
    )
    shared, rho = agreement(frame, removals)
    assert list(shared) == list(noises)
    assert rho.mean == pytest.approx(1)
    assert 0.5 < rho.low <= rho.high == pytest.approx(1)
    assert agreement(frame, -removals)[1].mean == pytest.approx(-1)
    few, unknown = agreement(frame, removals[["a", "b", "c"]])
    assert len(few) == 3
    assert math.isnan(unknown.mean)
    few_subsets = frame[frame["subset"] < "s05"]
    assert math.isnan(agreement(few_subsets, removals)[1].low)


def test_subsets_are_halves_that_depend_on_index_and_seed_alone():
    tiny = study("tiny")
    halves = [subset(tiny, index, 0.5) for index in range(5)]
    assert {len(half) for half in halves} == {100}
    assert len(set(halves)) == 5
    assert subset(tiny, 2, 0.5) == halves[2]
    assert subset(replace(tiny, seed=1), 2, 0.5) != halves[2]


def test_the_score_of_trained_subsets(tiny, tmp_path, monkeypatch):
    test = DatamodelTest(
        study=tiny, methods=[methods.create("pixel")], metrics=[metrics.create("loss_change")], subsets=4, seeds=2,
        num_queries=2, results=tmp_path,
    )  # fmt: skip
    found = test.execute()
    table = summary(found.frame)
    assert set(table["method"]) == {"pixel", "random", "same_caption"}
    assert table["lds"].between(-1, 1).all()
    assert table["low"].isna().all()
    assert (table["subsets"].eq(4) & table["queries"].eq(2)).all()
    assert len(found.frame) == 3 * 2 * 4
    [record] = [json.loads(path.read_text()) for path in (tmp_path / "subsets").iterdir()]
    assert len(set(record["subsets"])) == 4
    assert len(list((tmp_path / "models").iterdir())) == 1 + 2 + 4 * 2  # θ0 for the queries, an original for each seed
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *args: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(test.execute().frame, found.frame)
    fewer = replace(test, subsets=3).execute()
    pd.testing.assert_frame_equal(fewer.frame, found.frame)
    assert "no interval" in (tmp_path / "lds.md").read_text()


@pytest.mark.parametrize("changes", [{"subsets": 2}, {"share": 1.0}, {"metrics": [metrics.create("regeneration_mse")]}])
def test_bad_settings_are_refused(tiny, tmp_path, changes):
    usual = {"study": tiny, "methods": [], "results": tmp_path}
    with pytest.raises(InvalidInput):
        DatamodelTest(**(usual | changes))


def test_the_command_prints_the_score(tmp_path):
    given = ["--study", "tiny", "--method", "pixel", "--subsets", "3", "--queries", "1", "--results", str(tmp_path)]
    outcome = CliRunner().invoke(main, ["lds", *given], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert "pixel" in outcome.output
    assert (tmp_path / folder.LDS).exists()
