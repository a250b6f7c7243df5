"""Taking part: a submission is written, checked and taken in; a forged one is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from bench import Run, methods, study
from bench.errors import InvalidInput, ResultsFolderError
from bench.experiments.submissions import accepted, check, submit
from bench.records import folder as names
from bench.records import rows as results
from bench.records.sealing import bytes_digest, read_json
from bench.records.store import Store
from cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A board of ``random``, the run of another method on its queries, and what was submitted of it."""
    home = tmp_path_factory.mktemp("taking-part")

    def run(folder, method):
        shared = {"study": study("tiny"), "num_queries": 2, "budgets": [20], "floors": ["random"]}
        return Run(methods=[methods.create(method)], results=home / folder, **shared).execute()

    run("board", "same_caption")
    shutil.copytree(home / "board", home / "run")
    (home / "run" / names.ROWS).unlink()
    run("run", "pixel")
    submission = submit(home / "run", "pixel", home / "sent", board=home / "board")
    assert not submission.refused
    return home


@pytest.fixture
def home(made, tmp_path):
    for name in ("board", "run", "sent"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def sealed_again(folder):
    """As a forger who knows the format does."""
    record = read_json(folder / names.SUBMISSION)
    files = {name: bytes_digest(folder / name) for name in record["files"]}
    Store(folder).write_record((names.SUBMISSION,), record | {"files": files})


def bettered(folder):
    """Every value of the rows, ten times as high."""
    frame = results.load(Store(folder))
    Store(folder).write_frame((names.ROWS,), frame.assign(value=frame["value"] * 10))


def refusal(home, **how):
    [why] = check(home / "sent", board=home / "board", **how).refused
    return why


def test_what_is_sent_is_the_method_alone_and_all_that_it_rests_on(home):
    frame = results.load(Store(home / "sent"))
    assert set(frame["method"]) == {"pixel"}
    assert len(frame) == 4  # two queries, two metrics
    assert set(read_json(home / "sent" / names.MANIFEST)["methods"]) == {"pixel"}
    assert not (home / "sent" / "models").exists()
    said = "\n".join(check(home / "sent", board=home / "board").said)
    for word in ("digests", "study", "selections", "observations: they give the values of 4 rows", "comparable"):
        assert word in said


def test_a_submission_is_taken_in_by_the_board(home):
    place = home / "board" / names.SUBMISSIONS / "pixel"
    shutil.copytree(home / "sent", place)
    assert accepted(home / "board") == [place]
    command = ["leaderboard", "--study", "tiny", "--results", str(home / "board")]
    outcome = CliRunner().invoke(main, command, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = pd.read_parquet(home / "board" / names.ROWS)
    assert {"pixel", "same_caption", "random"} <= set(rows["method"])
    assert not check(place, board=home / "board").refused  # once it is on the board, too


def test_rows_that_were_changed_are_refused(home):
    bettered(home / "sent")
    assert "was changed after it was submitted" in refusal(home)
    sealed_again(home / "sent")
    assert "its observations give" in refusal(home)
    shutil.copytree(home / "sent", home / "board" / names.SUBMISSIONS / "pixel")
    with pytest.raises(ResultsFolderError, match="pixel is refused"):
        accepted(home / "board")
    command = ["leaderboard", "--study", "tiny", "--results", str(home / "board")]
    assert CliRunner().invoke(main, command).exit_code == 2


@pytest.mark.slow
def test_observations_that_were_changed_are_found_by_training_again(home):
    store = Store(home / "sent")
    frame = results.load(store)
    for path in names.observations(home / "sent"):
        if path.stem in set(frame["model_key"]):
            tensors, facts = store.tensors(*path.relative_to(store.root).parts)
            worse = {name: value * 1.5 for name, value in tensors.items()}
            store.write_tensors(names.observation(path.stem), worse, **facts)
    run = Run(
        study=study("tiny"), methods=[methods.create("pixel")], num_queries=2, budgets=[20], floors=["random"],
        results=home / "forged",
    )  # fmt: skip
    for name in (names.QUERIES, names.STUDY, "observations", "selections"):
        source, copy = home / "sent" / name, shutil.copytree if (home / "sent" / name).is_dir() else shutil.copy
        (home / "forged").mkdir(exist_ok=True)
        copy(source, home / "forged" / name)
    forged = run.execute().frame  # the rows that the changed observations give
    own = forged[forged["method"] == "pixel"].reset_index(drop=True)
    assert (own["value"] > frame["value"]).all()
    store.write_frame((names.ROWS,), own)
    sealed_again(home / "sent")
    assert not check(home / "sent", board=home / "board").refused  # nothing contradicts itself
    assert "could not be made again" in refusal(home, sample=1, seed=0)


@pytest.mark.parametrize("forged", [False, True])
def test_the_workflows_script_accepts_what_is_true_and_refuses_what_is_forged(home, forged):
    checkout = home / "checkout"
    place = checkout / "results" / "tiny"
    shutil.copytree(home / "board", place)
    (checkout / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "submissions", checkout / ".ci")
    program = home / "bench"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cli "$@"\n')
    program.chmod(0o755)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(checkout))
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "a board")):
        subprocess.run([*git, *command], check=True)
    shutil.copytree(home / "sent", place / names.SUBMISSIONS / "pixel")
    if forged:
        bettered(place / names.SUBMISSIONS / "pixel")
    subprocess.run([*git, "add", "."], check=True)
    script = [str(checkout / ".ci" / "submissions"), "HEAD"]
    run = subprocess.run(script, env=os.environ | {"BENCH": str(program)}, capture_output=True, text=True)
    assert run.returncode == int(forged), run.stdout + run.stderr
    assert ("was changed after" in run.stderr) if forged else ("agrees" in run.stdout)


def test_other_forgeries_are_refused(home):
    sent = home / "sent"
    (sent / "extra.txt").write_text("x")
    assert "not listed" in refusal(home)
    (sent / "extra.txt").unlink()
    [path, *_] = names.selections(sent)
    record = read_json(path)
    unnamed = next(image for image in study("tiny").dataset.ids if image not in record["ids"])
    Store(sent).write_record(path.relative_to(sent).parts, record | {"ids": [*record["ids"][1:], unnamed]})
    sealed_again(sent)
    assert "are not those that model" in refusal(home)
    shutil.rmtree(sent)
    sent.mkdir()
    assert "has no submission.json" in refusal(home)


def test_rows_of_another_removal_are_refused(home):
    store = Store(home / "sent")
    for path in names.observations(home / "sent"):  # without what they say of the removal
        tensors, facts = store.tensors(*path.relative_to(store.root).parts)
        kept = {name: fact for name, fact in facts.items() if name not in ("removed", "removed_sha256")}
        store.write_tensors(names.observation(path.stem), tensors, **kept)
    frame = results.load(store)
    store.write_frame((names.ROWS,), frame.assign(k=10))
    sealed_again(home / "sent")
    assert "model" in refusal(home)


def test_a_floor_and_an_unknown_method_are_not_submitted(home):
    with pytest.raises(InvalidInput, match="is a floor"):
        submit(home / "run", "random", home / "out")
    with pytest.raises(InvalidInput, match="no finished row of 'ours'"):
        submit(home / "run", "ours", home / "out")
    with pytest.raises(InvalidInput, match="exists already"):
        submit(home / "run", "pixel", home / "sent")


def test_another_method_of_the_same_name_is_refused(home):
    store = Store(home / "board")
    rows = results.load(store)
    other = rows[rows["method"] == "same_caption"].assign(method="pixel", method_digest="f" * 16)
    store.write_frame((names.ROWS,), pd.concat([rows, other], ignore_index=True))
    assert "another method called 'pixel'" in refusal(home)
