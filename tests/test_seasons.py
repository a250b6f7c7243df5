"""A season that never was: hidden queries are committed to, revealed, and asked."""

import json

import pytest
from click.testing import CliRunner

from bench import Run, methods, study
from bench.errors import InvalidInput
from bench.experiments.seasons import commit, reveal
from cli import main

QUERIES = "prompt,seed\na photo of a bag,4711\na photo of a dress,12\n"


@pytest.fixture
def season(tmp_path):
    (tmp_path / "queries.csv").write_text(QUERIES)
    public, secret = tmp_path / "season.json", tmp_path / "secret.json"
    commit("tiny", tmp_path / "queries.csv", public, secret, "2027-06-30")
    return public, secret


def test_the_commitment_tells_nothing_and_two_differ(season, tmp_path):
    public, _ = season
    text = public.read_text()
    assert "bag" not in text
    assert "4711" not in text
    again = commit("tiny", tmp_path / "queries.csv", tmp_path / "b.json", tmp_path / "c.json", "2027-06-30")
    assert again.commitment != json.loads(text)["commitment"]  # the salt is another


def test_revealed_queries_are_asked_of_the_same_models(season, tmp_path):
    found = reveal(*season)
    assert found.study.digest == study("tiny").digest
    specs = [(spec.prompt, spec.seed) for spec in found.study.queries(2)]
    assert specs == [("a photo of a bag", 4711), ("a photo of a dress", 12)]
    run = Run(
        study=found.study, methods=[methods.create("pixel")], budgets=[20], num_queries=1, floors=["random"],
        results=tmp_path / "run",
    )  # fmt: skip
    frame = run.execute().frame
    assert frame["status"].eq("done").all()
    assert set(frame["prompt"]) == {"a photo of a bag"}


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (1, lambda record: record | {"queries": [["a photo of a bag", 4712], *record["queries"][1:]]}),
        (1, lambda record: record | {"queries": record["queries"][:1]}),
        (1, lambda record: record | {"salt": "0" * 64}),
        (0, lambda record: record | {"closes": "2027-07-01"}),
        (0, lambda record: record | {"commitment": "0" * 64}),
    ],
)
def test_nothing_can_be_changed_afterwards(season, index, change):
    path = season[index]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    outcome = CliRunner().invoke(main, ["season", "reveal", str(season[0]), "--secret", str(season[1])])
    assert outcome.exit_code == 2
    assert "does not fit the commitment" in outcome.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,seed\na photo of a zebu,1\n", "zebu"),
        ("prompt,seed\na photo of a bag,x\n", "line 2: a prompt and a whole number"),
        ("prompt,seed\na photo of a bag,21\na photo of a bag,21\n", "line 3: the query comes twice"),
        ("prompt,seed\na photo of an ankle boot,0\n", "one of the study's own"),
        ("prompt\na photo of a bag\n", "the columns prompt, seed"),
    ],
)
def test_bad_queries_are_one_clear_line(tmp_path, text, words):
    (tmp_path / "queries.csv").write_text(text)
    with pytest.raises(InvalidInput, match=words):
        commit("tiny", tmp_path / "queries.csv", tmp_path / "a.json", tmp_path / "b.json", "2027-06-30")
    assert not (tmp_path / "a.json").exists()


def test_the_command_commits_once_and_until_a_date(season, tmp_path):
    command = ["season", "commit", str(season[0]), "--study", "tiny", "--queries", str(tmp_path / "queries.csv")]
    for options, words in (
        (["--secret", str(tmp_path / "other.json"), "--closes", "2027-06-30"], "is committed to once"),
        (["--secret", str(tmp_path / "other.json"), "--closes", "soon"], "is committed to once"),
    ):
        outcome = CliRunner().invoke(main, [*command, *options])
        assert outcome.exit_code == 2
        assert words in outcome.output
    command[2] = str(tmp_path / "new.json")
    outcome = CliRunner().invoke(main, [*command, "--secret", str(tmp_path / "other.json"), "--closes", "soon"])
    assert "a date such as" in outcome.output
