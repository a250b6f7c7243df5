"""Runs that add queries until an order is settled: the looks, where they stop, and that they go on where they were."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench import methods
from bench.errors import InvalidInput
from bench.experiments.planning import plan
from bench.experiments.until_settled import UntilSettled
from bench.report.looks import forecast, predicted, standings
from bench.studies import LOOKS, STUDIES, Look, study
from cli import main

EARLY = (Look(6, 0.032), Look(8, 0.018))  # the smallest p-value of six queries is 1/32


def frame_of(rng, means, queries=64, spread=1.0):
    return pd.DataFrame({name: mean + spread * rng.normal(size=queries) for name, mean in means.items()})


def test_the_error_of_all_looks_is_five_percent():
    for name in STUDIES:
        looks = study(name).looks
        assert sum(look.significance for look in looks) == pytest.approx(0.05)
        assert list(looks) == sorted(looks)
        assert looks[-1].queries <= len(study(name).prompts)
        assert all(2.0 ** (1 - look.queries) < look.significance for look in looks)  # each of them can settle a pair


def test_a_look_takes_the_first_queries_alone_and_tests_at_its_own_share():
    board = frame_of(np.random.default_rng(0), {"a": 4.0, "b": 0.0, "random": -4.0})
    board.iloc[16:, 0] = -100.0  # what comes after a look does not change it
    found = standings(board.iloc[:40], LOOKS, order="all", methods=["a", "b"], floors=["random"])
    assert [standing.look.queries for standing in found] == [16, 32]
    assert not found[0].open
    assert found[1].verdicts["a", "b"] == found[0].verdicts["a", "b"]  # what was settled stays settled
    strict = [Look(8, 0.001), Look(16, 0.049)]  # at a thousandth, eight queries settle nothing: p is 1/128 or more
    early = standings(board, strict, order="all", methods=["a", "b"], floors=["random"])
    assert [len(standing.open) for standing in early] == [3, 0]
    assert found[0].verdicts["a", "b"].significance == 0.01
    assert found[0].verdicts["a", "random"].significance == 0.005  # the floor's pairs are a family of their own


def test_the_order_says_which_pairs_must_be_settled():
    board = frame_of(np.random.default_rng(1), {"a": 9.0, "b": 0.0, "c": 0.1, "random": -9.0}, 32)
    given = {"methods": ["a", "b", "c"], "floors": ["random"]}
    asked = {order: standings(board, LOOKS, order=order, **given)[-1] for order in ("all", "leader", "floors")}
    assert asked["all"].open == (("b", "c"),)
    assert (asked["leader"].open, asked["floors"].open) == ((), ())
    assert set(asked["leader"].asked) == {("a", "b"), ("a", "c"), ("a", "random")}
    assert len(asked["floors"].verdicts) == 3
    wide = standings(board, LOOKS, order="all", margin=3.0, **given)
    assert not wide[-1].open  # equivalent: what does not matter is not searched for
    assert not standings(board, LOOKS, order="floors", methods=["a"], floors=[])


def test_what_later_looks_would_settle_is_predicted_by_students_test():
    board = frame_of(np.random.default_rng(2), {"a": 0.6, "b": 0.0, "random": -4.0}, 16)
    now = standings(board, LOOKS, order="all", methods=["a", "b"], floors=["random"])[-1]
    assert now.open == (("a", "b"),)
    later = predicted(now, LOOKS)
    assert [look.queries for look, _ in later] == [32, 64]
    assert [done for _, done in later] == sorted(done for _, done in later)
    assert forecast(now, LOOKS).endswith("queries")
    assert "the slowest pair" in forecast(now, LOOKS[:1])
    same = now._replace(verdicts=now.verdicts | {("a", "b"): now.verdicts["a", "b"]._replace(difference=0.0)})
    assert "no number can be told for a and b" in forecast(same, LOOKS)


def test_looking_again_keeps_the_error_in_a_simulation():
    rng = np.random.default_rng(3)
    looks = (Look(8, 0.01), Look(10, 0.015), Look(12, 0.025))
    names = dict.fromkeys(("a", "b", "c", "random"), 0.0)
    false = 0
    for _ in range(300):
        found = standings(frame_of(rng, names, 12), looks, order="all", methods=["a", "b", "c"], floors=["random"])
        false += any(verdict.settled for verdict in found[-1].verdicts.values())
    assert false <= 25  # of 300 at 5 %: more happen by chance once in 120 such tests


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.experiments.leave_k_out.draw_figures", lambda *given: [])
    quick = replace(tiny, looks=EARLY)
    own = {"methods": [methods.create("pixel")], "floors": ("random",), "budgets": [8]}
    return UntilSettled(study=quick, results=tmp_path, order="floors", **own)


def lifted(monkeypatch, by):
    """Every value of ``pixel`` is raised: the tiny study settles nothing by itself."""
    honest = UntilSettled.per_query

    def per_query(self, frame, metric):
        table = honest(self, frame, metric)
        return table.assign(pixel=table["pixel"] + by)

    monkeypatch.setattr(UntilSettled, "per_query", per_query)


def test_a_run_stops_at_the_look_that_settles_and_goes_on_where_it_was(run, monkeypatch):
    lifted(monkeypatch, 9.0)
    report = run.execute()
    assert set(report.frame["query"]) == {f"q{i:02d}" for i in range(6)}
    assert report.notes()[-1] == (
        "settled after 6 queries (look 1 of 2, K = 8, error spent 0.032); each method against each floor: 1 of 1 pairs"
    )
    assert report.manifest["run"]["until_settled"] == {"order": "floors", "k": 8, "looks": [[6, 0.032], [8, 0.018]]}
    assert "settled at 6 queries" in plan(run).power[0]
    monkeypatch.undo()
    monkeypatch.setattr("bench.experiments.leave_k_out.draw_figures", lambda *given: [])
    lifted(monkeypatch, -run.standings(report.merged)[0].verdicts["pixel", "random"].difference)  # no difference left
    assert "it takes more than the 8 of the study's last look" in plan(run).power[0]
    trained = []
    monkeypatch.setattr("bench.experiments.leave_k_out.Run.execute", watched(trained))
    longer = run.execute()
    assert trained == [6, 8]
    assert len(set(longer.frame["query"])) == 8
    kept = longer.frame.merge(report.frame, on=["method", "query", "metric", "k", "design", "seed"])
    assert len(kept) == len(report.frame)
    assert (kept["value_x"] == kept["value_y"]).all()
    assert longer.notes()[-3:-1] == [
        "not settled at the limit of 16 queries (look 2 of 2, K = 8, error spent 0.05); "
        "each method against each floor: 0 of 1 pairs",
        "open: pixel and random",
    ]
    assert "it takes more than the 8 of the study's last look" in longer.notes()[-1]


def watched(seen):
    """Run's own execution, and how many queries it was asked for."""
    from bench.experiments.leave_k_out import Run

    honest = Run.execute

    def execute(self, progress=None):
        seen.append(self.query_count)
        return honest(self, progress)

    return execute


def test_a_plan_goes_up_to_the_limit(run):
    assert run.query_count == 8
    assert plan(run).asked == 8 * 3
    assert "cannot be told" in plan(run).power[0]
    assert replace(run, max_queries=7).query_count == 6


def test_a_limit_below_the_first_look_and_unknown_orders_are_refused(run):
    with pytest.raises(InvalidInput, match="the first look of study 'tiny' is at 6 queries"):
        replace(run, max_queries=5)
    with pytest.raises(InvalidInput, match="one of all, leader, floors"):
        replace(run, order="some")
    for given, words in (
        (["--max-queries", "8"], "the limit of --until-settled"),
        (["--until-settled", "all", "--queries", "8"], "give --max-queries"),
    ):
        outcome = CliRunner().invoke(main, ["plan", "--study", "tiny", "--method", "pixel", *given])
        assert (outcome.exit_code, words in outcome.output) == (2, True), outcome.output


def test_the_command_plans_a_run_until_settled(tmp_path):
    given = ["--study", "tiny", "--method", "pixel", "--k", "20", "--results", str(tmp_path)]
    outcome = CliRunner().invoke(main, ["run", *given, "--until-settled", "leader", "--max-queries", "12", "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    assert "retrainings: 48 asked" in outcome.output
    assert "until settled (leader) at K = 20, at most 12 queries: cannot be told" in outcome.output
