"""Two scorings of a method, and what unlearning forgets: on a tiny study, with methods whose answer is known."""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import pytest
import torch

from bench.contracts import Method
from bench.errors import InvalidInput
from bench.experiments.forgetting import Forgetting
from bench.experiments.leave_k_out import Run
from bench.experiments.reliability import Reliability
from bench.foundation import seeds
from bench.records import tables
from bench.records.store import Store
from bench.registry import methods
from bench.report.publishing import publish


@pytest.fixture
def half_noise(own_registry):
    """A method of which the first half of the top images is always the same and the rest is drawn."""

    @dataclass(frozen=True, kw_only=True)
    class HalfNoise(Method):
        name: ClassVar[str] = "half_noise"
        summary: ClassVar[str] = "the first four images, then others by chance"

        def scores(self, context, queries):
            streams = [seeds.generator("half", context.seed, query.noise_key) for query in queries]
            found = torch.tensor([stream.random(len(context.dataset)).tolist() for stream in streams])
            found[:, :4] += 2
            return found

    methods.register(HalfNoise)
    return HalfNoise()


def test_what_is_drawn_anew_is_not_named_again(tiny, tmp_path, half_noise):
    run = Reliability(
        study=tiny, methods=[half_noise, methods.create("pixel")], budgets=[4, 8], num_queries=2, results=tmp_path
    )
    report = run.execute()
    shared = report.frame.groupby(["label", "k"])["shared"].mean()
    assert shared["pixel", 8] == shared["half_noise", 4] == 1
    assert 0.5 <= shared["half_noise", 8] < 1
    assert "undersampled: half_noise" in report.notes()[-1]
    assert "half_noise" not in report.notes()[0]
    again = run.execute()
    pd.testing.assert_frame_equal(report.frame, again.frame)


def test_floors_are_not_scored_twice(tiny, tmp_path):
    with pytest.raises(InvalidInput, match="no method but a floor"):
        Reliability(study=tiny, methods=[methods.create("random")], results=tmp_path)


def test_the_board_says_what_two_scorings_share_also_where_it_was_measured_elsewhere(tiny, tmp_path):
    chosen = [methods.create("pixel", tiny.name)]
    here, there = tmp_path / "here", tmp_path / "there"
    Run(study=tiny, methods=chosen, budgets=[8], num_queries=2, results=here, floors=["random"]).execute()
    board = publish(tiny, [], here).board
    assert not board.shared_known
    Run(study=tiny, methods=chosen, budgets=[8], num_queries=2, results=there, floors=["random"]).execute()
    Reliability(study=tiny, methods=chosen, budgets=[8], num_queries=2, results=there).execute()
    board = publish(tiny, [there], here).board
    assert {line.method: line.shared for line in board.lines} == {"pixel": 1.0, "random": None}
    assert "100%" in (here / "leaderboard.md").read_text()
    assert len(tables.RELIABILITY.read(Store(here))) == 2


def test_unlearning_nothing_forgets_nothing_and_more_forgets_more(tiny, tmp_path):
    still, little, much = (
        methods.create("ours", tiny.name, query_rise=0.0, step_size=0.0),
        methods.create("ours", tiny.name, query_rise=0.005),
        methods.create("ours", tiny.name, query_rise=0.02),
    )
    run = Forgetting(
        study=tiny, methods=[still, little, much, methods.create("pixel")], num_queries=2, results=tmp_path
    )
    report = run.execute()
    assert not report.problems()
    assert "pixel" in report.notes()[0]
    loss = report.frame[report.frame["metric"] == "loss_change"].assign(own=report.frame["other"] == "")
    means = loss.groupby(["method_digest", "own"])["value"].mean()
    assert means[still.digest].abs().max() == 0
    assert 0 < means[little.digest, True] < means[much.digest, True]
    assert means[much.digest, False] < means[much.digest, True]
    assert len(run.execute().frame) == len(report.frame)


def test_forgetting_needs_a_method_that_unlearns(tiny, tmp_path):
    with pytest.raises(InvalidInput, match="none of them unlearns"):
        Forgetting(study=tiny, methods=[methods.create("pixel")], results=tmp_path)
