"""Queries as plain files, and the scores that come back."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from bench.diffusion.queries import load_queries
from bench.records.store import Store
from bench.registry import methods
from bench.studies import study
from cli import main


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    command = ["queries", "export", str(folder / "out"), "--study", "tiny", "--queries", "1", "--images"]
    outcome = CliRunner().invoke(main, [*command, "--results", str(folder / "run")], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return folder, outcome.output


def test_the_files_hold_what_the_queries_are(exported):
    folder, shown = exported
    [query] = load_queries(Store(folder / "run")).values()
    record = json.loads((folder / "out" / "queries.json").read_text())
    [fact] = record["queries"]
    assert (fact["id"], fact["prompt"], fact["seed"], fact["digest"]) == (
        query.id, query.prompt, query.seed, query.digest,
    )  # fmt: skip
    assert record["study_digest"] == study("tiny").digest
    with np.load(folder / "out" / "queries.npz") as arrays:
        np.testing.assert_array_equal(arrays["noise"][0], query.noise.numpy())
        np.testing.assert_array_equal(arrays["latent"][0], query.latent.numpy())
    assert "--scores FILE.csv" in shown


def test_a_program_that_knows_only_the_files_can_score(exported):
    folder, _ = exported
    out = folder / "out"
    dataset = study("tiny").dataset
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(dataset.ids)
    [fact] = json.loads((out / "queries.json").read_text())["queries"]
    picture = np.asarray(Image.open(out / fact["image"]), dtype=float)
    with (out / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "image", "score"])
        for index, row in enumerate(rows):
            training = np.asarray(Image.open(out / row["file"]), dtype=float)
            np.testing.assert_array_equal(training, dataset.images[index].squeeze(-1).numpy())
            writer.writerow([fact["id"], row["id"], -np.square(picture - training).mean()])
    command = ["run", "--study", "tiny", "--scores", str(out / "scores.csv"), "--name", "elsewhere", "--k", "20"]
    options = ["--floor", "random", "--queries", "1", "--results", str(folder / "run")]
    try:
        outcome = CliRunner().invoke(main, [*command, *options], catch_exceptions=False)
    finally:
        methods._classes.pop("elsewhere", None)
    assert outcome.exit_code == 0, outcome.output
    table = pd.read_parquet(folder / "run" / "results.parquet")
    own = table[table["method"] == "elsewhere"]
    assert len(own)
    assert own["status"].eq("done").all()


def test_nothing_is_overwritten(exported):
    folder, _ = exported
    command = ["queries", "export", str(folder / "out"), "--study", "tiny", "--results", str(folder / "run")]
    outcome = CliRunner().invoke(main, command)
    assert outcome.exit_code == 2
    assert "is not empty" in outcome.output
