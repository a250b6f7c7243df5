"""What a plan counts and estimates, and that it spends nothing; what verification recomputes, and what it catches."""

import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from test_flow import quick_run

from bench import metrics
from bench.errors import InvalidInput
from bench.experiments.planning import plan
from bench.experiments.reference import Reference
from bench.experiments.throughput import Throughput, here, recorded
from bench.experiments.verification import rows_by_chance, rows_to_verify, verify
from bench.records import folder
from bench.records import rows as results
from bench.records.store import Store
from cli import main


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    run = quick_run(tiny, tmp_path_factory.mktemp("planned"), names=("pixel",), num_queries=1)
    return run, run.execute()


def test_a_plan_counts_what_is_asked_shared_and_cached(finished):
    run, _ = finished
    found = plan(run)
    assert (found.asked, found.trainings, found.cached) == (3, 4, 4)  # pixel, random, nothing removed; the original
    assert (found.to_train, found.to_observe, found.to_score) == (0, 0, 0)
    assert found.seconds == 0
    assert found.records_mib == 0
    more = plan(replace(run, num_queries=2, budgets=[8, 20]))
    assert (more.asked, more.trainings, more.cached) == (10, 10, 2)  # the originals miss the second query
    assert (more.to_train, more.to_observe, more.to_score) == (6, 2, 2)
    assert more.seconds > 0
    assert more.records_mib > 0


def test_the_draws_of_the_reference_are_shared_by_all_queries(tiny, tmp_path):
    found = plan(Reference(study=tiny, results=tmp_path, budgets=[8, 60], models=3, num_queries=2))
    assert (found.asked, found.trainings, found.to_train, found.to_score) == (12, 7, 8, 0)  # with θ0, for the queries
    assert not (tmp_path / "models").exists()


def test_a_plan_sees_models_that_need_observing_only(finished):
    run, _ = finished
    extended = plan(replace(run, metrics=[metrics.create("loss_change"), metrics.create("specificity")]))
    assert (extended.cached, extended.to_observe, extended.to_train) == (0, 4, 0)


def test_a_plan_counts_deleted_models_again(finished, tmp_path):
    run, _ = finished
    subprocess.run(["cp", "-r", f"{run.folder}/.", str(tmp_path)], check=True)
    for path in (tmp_path / "models").iterdir():
        path.unlink()
    elsewhere = replace(run, results=tmp_path)
    assert plan(elsewhere).to_train == 0
    assert plan(replace(elsewhere, metrics=[metrics.create("specificity")])).to_train == 4


def test_times_come_from_records_of_the_same_layout_else_from_a_probe(finished):
    run, _ = finished
    workspace = run.open()
    [known] = recorded(workspace)
    assert known.source == "median of 4 finished"
    assert known.workers == 1
    assert set(known.observing_seconds) == {"query_loss@5", "regeneration"}
    assert here(workspace, 1, run.threads, [known]) is known
    probed = here(workspace, 1, run.threads, [replace(known, workers=2)])
    assert "just now" in probed.source
    assert 0.2 < probed.training_seconds / known.training_seconds < 5


def test_a_layout_of_workers_is_measured_with_that_many_processes(tiny, tmp_path, monkeypatch):
    probes, submit = [], ProcessPoolExecutor.submit

    def watched(self, *task, **given):
        probes.append(submit(self, *task, **given))
        return probes[-1]

    monkeypatch.setattr(ProcessPoolExecutor, "submit", watched)
    speed, seconds = plan(quick_run(tiny, tmp_path, names=("pixel",), num_queries=1, workers=2)).times[0]
    times = [probe.result() for probe in probes]
    assert len(times) == 2
    assert speed.training_seconds == pytest.approx(np.mean([training for _, training, _ in times]))
    assert "2 workers of" in speed.layout
    assert seconds >= 2 * speed.training_seconds + speed.start_seconds  # four models are two rounds


def test_rounds_and_shares_make_the_time(finished):
    from bench.experiments.planning import _seconds

    speed = Throughput(
        machine="",
        workers=2,
        threads=1,
        training_seconds=10.0,
        observing_seconds={"a": 1.0},
        start_seconds=5.0,
        source="",
    )
    assert _seconds(speed, 3, [{"a": 2}, {"a": 2}]) == 5 + 2 * 10 + 4 / 2
    assert _seconds(speed, 0, []) == 0
    assert _seconds(replace(speed, workers=0, threads=2), 3, [{"a": 3}]) == 5 + 30 + 2


def test_the_number_of_queries_for_an_effect_needs_rows(finished, tiny, tmp_path):
    run, _ = finished
    assert "cannot be told" in plan(run, effect=0.1).power[0]
    rng = np.random.default_rng(0)
    quick_run(tiny, tmp_path).open()
    rows = [
        {"method": method, "method_digest": method, "query": f"q{i}", "query_digest": f"q{i}", "k": 8,
         "metric": "loss_change", "design": "paired", "value": rng.normal(0, 1), "status": "done", "seed": 0}
        for method in ("pixel", "random") for i in range(12)
    ]  # fmt: skip
    blank = {name: 0 if kind != "str" else "" for name, (kind, _) in results.COLUMNS.items()}
    frame = pd.DataFrame([blank | row for row in rows]).astype({n: kind for n, (kind, _) in results.COLUMNS.items()})
    results.merge(Store(tmp_path), frame)
    [large] = plan(quick_run(tiny, tmp_path, names=("pixel",)), effect=10.0).power
    [small] = plan(quick_run(tiny, tmp_path, names=("pixel",)), effect=1.0).power
    numbers = [int(line.split(": ")[1].split()[0]) for line in (large, small)]
    assert numbers[0] < 10 < numbers[1] < 100


def test_the_plan_command_prints_all_of_it(finished):
    run, _ = finished
    given = ["--study", "tiny", "--method", "pixel", "--k", "20", "--queries", "1", "--effect", "0.001"]
    outcome = CliRunner().invoke(main, ["plan", *given, "--results", str(run.folder) + "-plan"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    for words in ("retrainings: 4 asked", "5 to train", "time here", "disk:", "cannot be told", "not known yet for"):
        assert words in outcome.output


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A results folder of the shipped tiny study, as the command makes it, with records only."""
    folder = tmp_path_factory.mktemp("published")
    commands = (
        ["run", "--method", "pixel", "--floor", "random", "--queries", "1", "--k", "20"],
        ["reference", "--k", "100", "--models", "2", "--queries", "1"],
    )
    for command in commands:
        given = [*command, "--study", "tiny", "--results", str(folder)]
        assert CliRunner().invoke(main, given, catch_exceptions=False).exit_code == 0
    subprocess.run(["rm", "-r", str(folder / "models"), str(folder / "cache")], check=True)
    return folder


def command(folder, *arguments):
    return CliRunner().invoke(main, ["verify", "--results", str(folder), *arguments], catch_exceptions=False)


def test_a_published_row_is_recomputed_to_the_bit(published):
    outcome = command(published, "--method", "pixel", "--query", "q00", "--k", "20")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("agrees: ") == 2  # loss_change and regeneration_mse
    assert "allowed difference 0 (the same machine kind)" in outcome.output


def test_a_row_that_was_altered_disagrees(published, tmp_path):
    subprocess.run(["cp", "-r", f"{published}/.", str(tmp_path)], check=True)
    frame = pd.read_parquet(tmp_path / folder.ROWS)
    at = frame.index[(frame["method"] == "random reference") & (frame["metric"] == "loss_change")][1]
    frame.loc[at, "value"] = np.nextafter(frame.loc[at, "value"], 1)
    frame.to_parquet(tmp_path / folder.ROWS)
    outcome = command(tmp_path, "--row", str(at))
    assert outcome.exit_code == 1, outcome.output
    assert "DISAGREES" in outcome.output
    frame["machine"] = "another"
    row = frame.loc[at]
    alike = (frame[["metric", "design", "k"]] == row[["metric", "design", "k"]]).all(axis=1)
    honest, usual = row["value"], frame["value"][alike].abs().mean()
    for share, agrees in ((0.005, True), (0.02, False)):  # of what such values are on average, where 0.01 is allowed
        frame.loc[at, "value"] = honest + share * usual
        frame.to_parquet(tmp_path / folder.ROWS)
        outcome = command(tmp_path, "--row", str(at))
        assert (outcome.exit_code == 0, "another machine kind" in outcome.output) == (agrees, True)


def test_the_unpaired_floor_can_be_verified_too(published):
    outcome = command(published, "--method", "nothing removed")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("agrees: ") == 2


def test_a_sample_drawn_by_chance_is_recomputed_and_what_cannot_be_costs_no_other_row(published, tmp_path):
    outcome = command(published, "--sample", "2", "--seed", "1")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("agrees: ") == 4  # two removals, two metrics
    assert "2 removals drawn by chance (--seed 1" in outcome.output
    drawn = [tuple(rows["model_key"]) for rows in rows_by_chance(published, 2, 1)]
    assert drawn == [tuple(rows["model_key"]) for rows in rows_by_chance(published, 2, 1)]
    assert len({keys for seed in range(20) for keys in map(tuple, _keys(published, seed))}) == 4  # of 4 removals, each

    subprocess.run(["cp", "-r", f"{published}/.", str(tmp_path)], check=True)
    frame = pd.read_parquet(tmp_path / folder.ROWS)
    frame.loc[frame["method"] == "pixel", "model_key"] = "other"
    frame.to_parquet(tmp_path / folder.ROWS)
    outcome = command(tmp_path, "--sample", "99")
    assert outcome.exit_code == 1, outcome.output
    assert "pixel, q00, K = 20: The row's model other is not the one" in outcome.output.replace("\n", " ")
    assert outcome.output.count("agrees: ") == 6
    for wrong in (["--sample", "0"], ["--sample", "1", "--k", "20"], ["--seed", "1", "--row", "0"]):
        assert command(published, *wrong).exit_code == 2


def _keys(published, seed):
    return [list(rows["model_key"]) for rows in rows_by_chance(published, 2, seed)]


def test_what_cannot_be_verified_is_said(published, tmp_path):
    rows = rows_to_verify(published, method="pixel")
    for change, words in (
        ({"status": "failed", "reason": "diverged"}, "published as failed"),
        ({"study_digest": "other"}, "of version other"),
        ({"query_digest": "other"}, "does not hold the row's query"),
        ({"method_digest": "other"}, "holds 0 ids"),
        ({"model_key": "other"}, "do not belong together"),
        ({"evaluator": "other"}, "published by evaluator other"),
    ):
        with pytest.raises(InvalidInput, match=words):
            verify(published, rows.assign(**change))
    for arguments, words in (
        (["--row", "99"], "has the rows 0 to"),
        (["--method", "pixle"], "methods: nothing removed, pixel"),
        ([], "rows are meant"),
    ):
        outcome = command(published, *arguments)
        assert (outcome.exit_code, words in outcome.output) == (2, True)
    outcome = command(tmp_path)
    assert (outcome.exit_code, "holds no rows" in outcome.output) == (2, True)
    assert verify(published, rows).rows[0].agrees  # the unchanged rows can be
