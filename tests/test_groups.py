"""Groups of images: which images form one, how a group's score is made, agreement with the truth, and the command."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from bench.errors import InvalidInput
from bench.experiments.groups import AGGREGATES, GroupTest, groups_of
from bench.records import folder
from bench.registry import methods
from bench.report.groups import agreement_of, summary, truth_table
from bench.studies import study
from cli import main


def lines(scores, changes, *, query="q00", held_out=False, aggregate="mean"):
    names = [f"hat: {number}" for number in range(len(scores))]
    shared = {
        "groups": "hat", "label": "mine", "method_digest": "0", "seeds": 1, "query": query, "held_out": held_out,
        "aggregate": aggregate, "images": 10,
    }  # fmt: skip
    return pd.DataFrame({"group": names, "score": scores, "change": changes}).assign(**shared)


def test_groups_are_the_images_that_share_a_value():
    faces = study("faces").dataset
    hats = groups_of(faces, ["hat"])
    assert {name: len(images) for name, images in hats.items()}["hat: purple"] == 150
    assert hats["hat: purple"] == tuple(faces.carriers("hat", "purple"))
    assert "hat: " not in hats
    rare = groups_of(faces, ["parts"], 200)
    assert len(rare) == 17
    assert {"sides: curtains", "hair_colour: green", "glasses: sunglasses"} < rare.keys()
    assert len(groups_of(study("tiny").dataset, ["concept"])) == 10


@pytest.mark.parametrize(
    ("name", "by", "largest", "said"),
    [
        ("tiny", ["hat"], None, "one of concept, style"),
        ("tiny", ["parts"], None, "are not known"),
        ("tiny", ["style"], None, "0 groups"),
        ("faces", ["hat"], 5, "0 groups of at most 5"),
        ("faces", [], None, "nothing"),
    ],
)
def test_groups_that_cannot_be_ranked_are_refused(name, by, largest, said):
    with pytest.raises(InvalidInput, match=said):
        groups_of(study(name).dataset, by, largest)


def test_aggregates():
    scores, images, top = np.array([4.0, 1.0, 3.0, -2.0]), np.array([0, 3]), np.array([0, 2])
    found = {name: score(scores, images, top) for name, score in AGGREGATES.items()}
    assert found == {"mean": 1.0, "sum": 2.0, "share of the top K": 0.5}


def test_agreement_knows_the_right_order_the_reverse_and_ties():
    right, reverse = lines([1.0, 2.0, 3.0], [0.1, 0.2, 0.4]), lines([3.0, 2.0, 1.0], [0.1, 0.2, 0.4])
    assert agreement_of(right)[["spearman", "first"]].to_numpy().tolist() == [[1.0, 1.0]]
    assert agreement_of(reverse)[["spearman", "first"]].to_numpy().tolist() == [[-1.0, 0.0]]
    alike = agreement_of(lines([1.0, 1.0, 1.0], [0.1, 0.2, 0.4]))
    assert alike["spearman"].item() == 0
    assert alike["first"].item() == pytest.approx(1 / 3)
    failed = agreement_of(lines([9.0, 2.0, 3.0, 1.0], [np.nan, 0.2, 0.4, 0.1]))
    assert failed[["spearman", "first", "groups"]].to_numpy().tolist() == [[1.0, 1.0, 3.0]]


def test_the_summary_is_of_reported_queries_alone():
    frame = pd.concat([
        lines([1.0, 2.0, 3.0], [0.1, 0.2, 0.4]),
        lines([3.0, 2.0, 1.0], [0.1, 0.2, 0.4], query="held-out-00", held_out=True),
    ])  # fmt: skip
    [line] = summary(frame).itertuples()
    assert (line.rho.mean, line.first.won, line.first.queries) == (1.0, 1.0, 1)
    assert line.chance == pytest.approx(1 / 3)
    [row] = truth_table(frame)[1]
    assert row[:2] == ["hat", "q00"]
    assert row[2].startswith("hat: 2 (10 images): +0.4")


def test_the_aggregate_is_chosen_on_held_out_queries(tiny, queries):
    """Sum and mean name other groups first where groups differ in size; the truth of held-out queries decides."""
    test = GroupTest(study=tiny, methods=[methods.create("pixel")], by=["concept"])
    whole = test.members
    first, *others = whole
    members = {first: whole[first][:1], **{name: whole[name] for name in others}}
    object.__setattr__(test, "members", members)
    asked = [queries[0], replace(queries[1], id="held-out-00")]
    scores = np.ones((2, len(tiny.dataset)))
    scores[:, list(members[first])] = 3.0  # by the mean it leads, by the sum it is the last
    for leads, aggregate in ((first, "mean"), (others[0], "sum")):
        changes = pd.DataFrame(0.0, index=[query.id for query in asked], columns=list(members))
        changes[leads] = 1.0
        changes[first] -= 0.1
        found = test._lines(methods.create("pixel"), asked, scores, [np.array([0])] * 2, changes)
        assert set(found["aggregate"]) == {aggregate}, leads


def test_truth_by_retraining_and_scores_that_know_it(tiny, tmp_path, monkeypatch):
    """Scores made of the truth agree with it: rank correlation 1, the same group first; and nothing is done twice."""
    test = GroupTest(study=tiny, methods=[methods.create("pixel")], by=["concept"], num_queries=2, results=tmp_path)
    first = test.execute()
    assert set(first.frame["label"]) == {"pixel", "random", "same_caption"}
    assert len(first.frame) == 3 * (2 + 2) * 10
    assert first.frame["held_out"].sum() == 3 * 2 * 10
    assert first.frame["change"].notna().all()
    assert len(list((tmp_path / "models").iterdir())) == 1 + 1 + 10
    own = first.frame[first.frame["label"] == "pixel"]
    truth = own.pivot_table(index="query", columns="group", values="change")
    knows = torch.zeros(4, len(tiny.dataset), dtype=torch.float64)
    queries = sorted(truth.index, key=lambda name: (name.startswith("held-out"), name))
    for row, query in enumerate(queries):
        for name, images in test.members.items():
            knows[row, list(images)] = float(truth.loc[query, name])

    class Known:
        matrix = knows

    monkeypatch.setattr("bench.experiments.workspace.Workspace.scores", lambda *given: Known)
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *given: pytest.fail("trained again"))
    again = test.execute()
    table = summary(again.frame[again.frame["label"] == "pixel"])
    assert table["rho"].item().mean == pytest.approx(1.0)
    assert table["first"].item().won == 2
    text = (tmp_path / folder.GROUPS_TABLE).read_text()
    assert "pixel" in text
    assert "2 of 2" in text


def test_a_group_whose_training_failed_is_left_out(tiny, queries):
    test = GroupTest(study=tiny, methods=[methods.create("pixel")], by=["concept"])
    changes = pd.DataFrame(0.5, index=[query.id for query in queries], columns=list(test.members)[1:])
    found = test._lines(
        methods.create("pixel"), queries, np.zeros((2, len(tiny.dataset))), [np.array([0])] * 2, changes
    )
    assert found["change"].isna().sum() == 2


def test_the_command_and_its_plan(tmp_path):
    given = ["groups", "--study", "tiny", "--method", "pixel", "--by", "hat", "--results", str(tmp_path)]
    outcome = CliRunner().invoke(main, given)
    assert outcome.exit_code == 2
    assert "concept" in outcome.output
    planned = CliRunner().invoke(main, [*given[:5], "--results", str(tmp_path), "--dry-run"], catch_exceptions=False)
    assert planned.exit_code == 0, planned.output
    assert "11 models after sharing" in planned.output
