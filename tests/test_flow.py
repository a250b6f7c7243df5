"""The whole experiment on the tiny study: what it writes, that it resumes, that processes share the work."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch

from bench import Run, methods
from bench.contracts import FLOOR
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import TrainingRun
from bench.errors import InvalidInput
from bench.experiments.planning import plan
from bench.foundation.progress import Progress
from bench.records import rows as results
from bench.records.store import read_tensors
from bench.studies import Study, study
from methods.pixel import Pixel

QUICK = {"num_fisher_draws": 128, "num_gradient_draws": 128, "timestep_stride": 250}


def quick_run(tiny: Study, folder: Path, names=("ours", "pixel"), **changes) -> Run:
    chosen = [methods.create(name, "tiny", **(QUICK if name == "ours" else {})) for name in names]
    usual = {"study": tiny, "methods": chosen, "floors": ("random",), "budgets": [8], "num_queries": 2}
    return Run(**(usual | {"results": folder} | changes))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    run = quick_run(tiny, tmp_path_factory.mktemp("finished"))
    return run, run.execute()


def test_a_run_gives_every_figure_with_both_floors(finished):
    run, report = finished
    frame = report.frame
    assert list(frame.columns) == list(results.COLUMNS)
    assert set(frame["method"]) == {"ours", "pixel", "random", "nothing removed"}
    assert set(frame["settings"]) == {"", json.dumps(QUICK, sort_keys=True)}
    assert "ours[num_fisher_draws=128, num_gradient_draws=128, timestep_stride=250]" in set(report.table["method"])
    assert len(frame) == 2 * 2 * 4
    assert (frame["status"] == "done").all()
    assert frame["value"].notna().all()
    assert set(frame[frame["method"] == "nothing removed"]["design"]) == {"unpaired"}
    for name in ("results.parquet", "manifest.json", "table.md", "study.json", "queries.safetensors"):
        assert (run.folder / name).exists()
    assert {path.name for path in report.figures} == {
        "top_images.png", "overlap_8.png", "regenerations.png", "removals.png", "loss_change.png",
        "regeneration_mse.png",
    }  # fmt: skip
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["study_digest"] == run.study.digest
    assert manifest["runs"][0]["wall_seconds"] > 0


def test_the_table_is_the_mean_over_queries(finished):
    _, report = finished
    line = report.table.query("method == 'pixel' and metric == 'loss_change'").iloc[0]
    values = report.frame.query("method == 'pixel' and metric == 'loss_change'")["value"]
    assert line["mean"] == pytest.approx(values.mean())
    assert line["standard_error"] == pytest.approx(values.std() / 2**0.5)
    chance = report.frame.query("method == 'random' and metric == 'loss_change'")["value"]
    assert line["difference"] == pytest.approx(values.mean() - chance.mean())


def test_nothing_removed_with_the_same_seed_changes_nothing(finished, tiny):
    run, _ = finished
    workspace = run.open()
    job = workspace.original_job()
    kept, _ = workspace.ledger.observed(job)
    model = workspace.ledger.model(job)
    [query] = workspace.queries(run.specs[:1])
    for metric in run.metrics:
        again = metric.observation.observe(model, [query], tiny.seed)[0]
        first = kept[f"{query.digest}.{metric.observation.name}"]
        assert metric.value(query, first, again) == pytest.approx(0, abs=1e-9)


def test_a_rerun_trains_nothing_and_gives_the_same_figures(finished, monkeypatch):
    run, report = finished
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *args: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(run.execute().frame, report.frame)


def test_a_run_goes_on_from_its_records_alone(finished, monkeypatch, tmp_path):
    run, report = finished
    kept = ["study.json", "queries.safetensors", "selections", "observations", "results.parquet"]
    for name in kept:
        subprocess.run(["cp", "-r", str(run.folder / name), str(tmp_path)], check=True)
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *args: pytest.fail("trained again"))
    elsewhere = replace(run, results=tmp_path)
    pd.testing.assert_frame_equal(elsewhere.execute().frame, report.frame)


def test_progress_tells_models_to_observe_from_models_to_train(finished, tmp_path):
    run, report = finished
    subprocess.run(["cp", "-r", f"{run.folder}/.", str(tmp_path)], check=True)
    shutil.rmtree(tmp_path / "observations")
    key = report.frame.query("method == 'pixel'")["model_key"].iloc[0]
    (tmp_path / "models" / f"{key}.safetensors").unlink()
    last = {}

    class Watch(Progress):
        def advance(self, task, done, total):
            last[task] = (done, total)

    again = replace(run, results=tmp_path).execute(Watch())
    steps = run.study.recipe.num_steps
    assert (last["retrain"], last["observe"]) == ((steps, steps), (7, 7))
    pd.testing.assert_series_equal(again.frame["value"], report.frame["value"], rtol=1e-4)


def test_two_workers_give_the_same_figures(finished, tiny, tmp_path, monkeypatch):
    run, report = finished
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *args: pytest.fail("a worker did not train it"))
    other = quick_run(tiny, tmp_path, workers=2).execute()
    columns = ["train_seconds", "score_seconds"]
    pd.testing.assert_frame_equal(other.frame.drop(columns=columns), report.frame.drop(columns=columns), rtol=1e-4)
    for path in (run.folder / "models").iterdir():
        mine, theirs = read_tensors(path)[0], read_tensors(tmp_path / "models" / path.name)[0]
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@dataclass(frozen=True, kw_only=True)
class Twin(Pixel):
    """Names the images of ``pixel`` under another name."""

    name: ClassVar[str] = "twin"


def test_equal_removal_sets_train_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(methods._classes, "twin", Twin)
    steps, advance = [], TrainingRun.advance
    monkeypatch.setattr(TrainingRun, "advance", lambda self: steps.append(self.draws.seed) or advance(self))
    run = quick_run(tiny, tmp_path, names=("pixel",), num_queries=1)
    frame = replace(run, methods=[*run.methods, Twin()]).execute().frame
    keys = frame.groupby("method")["model_key"].unique().str.join("")
    assert keys["pixel"] == keys["twin"] != keys["random"]
    assert len(steps) == 4 * tiny.recipe.num_steps  # θ0, the pairs' original, the twins' model, random's
    values = {name: rows["value"].tolist() for name, rows in frame.groupby("method")}
    assert values["pixel"] == values["twin"] != values["random"]


def test_a_damaged_model_and_observation_are_set_aside_and_rebuilt(finished, tiny, tmp_path):
    run, report = finished
    subprocess.run(["cp", "-r", f"{run.folder}/.", str(tmp_path)], check=True)
    key = report.frame.query("method == 'pixel'")["model_key"].iloc[0]
    for folder in ("models", "observations"):
        path = tmp_path / folder / f"{key}.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
    again = replace(run, results=tmp_path).execute()
    pd.testing.assert_series_equal(again.frame["value"], report.frame["value"], rtol=1e-6)
    assert (tmp_path / "damaged" / f"{key}.safetensors").exists()


def test_models_beyond_the_size_limit_are_deleted_and_their_figures_stay(tiny, tmp_path):
    run = quick_run(tiny, tmp_path, names=("pixel",), size_limit_mib=0.2)
    report = run.execute()
    assert len(list((tmp_path / "models").iterdir())) < report.frame["model_key"].nunique() + 1
    assert report.frame["value"].notna().all()


def test_both_designs_can_be_reported(tiny, tmp_path):
    report = quick_run(tiny, tmp_path, names=("pixel",), pairing="both", num_queries=1).execute()
    loss = report.frame.query("metric == 'loss_change'").set_index(["method", "design"])["value"]
    floor = loss["nothing removed", "unpaired"]
    for method in ("pixel", "random"):
        assert loss[method, "paired"] == pytest.approx(loss[method, "unpaired"] - floor, abs=1e-7)
    assert report.table["low"].isna().all()  # one query is too few for an interval


def test_no_removal_is_judged_by_the_seed_that_made_the_query(finished, tiny):
    _, report = finished
    assert tiny.seed not in set(report.frame["seed"])
    assert len(set(report.frame["seed"])) == 1


def test_a_failing_method_is_recorded_and_does_not_stop_the_others(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("methods.pixel.Pixel.scores", lambda self, context, queries: torch.zeros(3, 2))
    report = quick_run(tiny, tmp_path, names=("pixel",)).execute()
    assert "shape (3, 2)" in report.failures["pixel"]
    assert "random" in set(report.frame["method"])


def test_a_diverging_training_is_reported_with_its_reason(tiny, tmp_path, monkeypatch):
    from bench.diffusion import training

    original = training.TrainingRun.advance

    def diverge(self):
        if self.draws.is_removed.any():
            raise training.TrainingFailed("The loss became nan at step 3")
        return original(self)

    monkeypatch.setattr(training.TrainingRun, "advance", diverge)
    report = quick_run(tiny, tmp_path, names=("pixel",), num_queries=1).execute()
    failed = report.frame[report.frame["status"] == "failed"]
    assert set(failed["method"]) == {"pixel", "random"}
    assert failed["reason"].str.contains("nan at step 3").all()


def test_every_floor_is_added_unless_some_are_named(tiny, tmp_path):
    def names(**changes):
        return [method.name for method in quick_run(tiny, tmp_path, names=("pixel",), **changes).with_floors]

    every = sorted(method.name for method in methods if method.role == FLOOR)
    assert sorted(names(floors=())) == sorted(["pixel", *every])
    assert len(every) > 1
    assert names() == ["pixel", "random"]
    assert names(floors=("same_caption",)) == ["pixel", "same_caption", "random"]  # differences are taken from random
    assert [method.name for method in quick_run(tiny, tmp_path, names=every, floors=()).with_floors] == every
    with pytest.raises(InvalidInput, match="--floor pixel: one of random, same_caption"):
        quick_run(tiny, tmp_path, floors=("pixel",))


def test_a_plan_trains_nothing_and_counts_what_is_cached(finished, tiny, tmp_path):
    run, _ = finished
    assert plan(run).cached == plan(run).trainings == 8
    fresh = plan(quick_run(tiny, tmp_path))
    assert (fresh.trainings, fresh.cached, fresh.to_score) == (8, 0, 6)
    assert not (tmp_path / "models").exists()


COMMAND = [
    sys.executable,
    "-m",
    "cli",
    "run",
    "--study",
    "tiny",
    "--method",
    "pixel",
    "--floor",
    "random",
    "--queries",
    "1",
    "--k",
    "20",
]


def killed_and_resumed(folder: Path, moments: list[float], kind: signal.Signals) -> pd.DataFrame:
    for moment in moments:
        process = subprocess.Popen(
            [*COMMAND, "--results", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        process.send_signal(kind)
        process.wait(60)
    subprocess.run([*COMMAND, "--results", str(folder)], check=True, capture_output=True)
    return pd.read_parquet(folder / "results.parquet")


@pytest.mark.parametrize("kind", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_figures(tmp_path, kind, monkeypatch):
    undisturbed = killed_and_resumed(tmp_path / "a", [], kind)
    moments = [random.Random(int(kind)).uniform(2.0, 7.0) for _ in range(2)]
    disturbed = killed_and_resumed(tmp_path / "b", moments, kind)
    columns = ["train_seconds", "score_seconds"]
    pd.testing.assert_frame_equal(disturbed.drop(columns=columns), undisturbed.drop(columns=columns))


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_figures(tmp_path):
    undisturbed = killed_and_resumed(tmp_path / "a", [], signal.SIGKILL)
    moments = [random.Random(moment).uniform(2.0, 9.0) for moment in range(10)]
    disturbed = killed_and_resumed(tmp_path / "b", moments, signal.SIGKILL)
    columns = ["train_seconds", "score_seconds"]
    pd.testing.assert_frame_equal(disturbed.drop(columns=columns), undisturbed.drop(columns=columns))


def test_two_runs_on_one_folder_share_the_work(tmp_path):
    command = [*COMMAND, "--results", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(list((tmp_path / "models").iterdir())) == 4
    assert pd.read_parquet(tmp_path / "results.parquet")["status"].eq("done").all()


def test_the_emoji_study_runs_through_its_autoencoder_in_colour(tmp_path):
    whole = study("emoji")
    hasty = replace(whole, recipe=replace(whole.recipe, num_steps=2), sampler=Sampler(num_steps=2, guidance=2.0))
    report = Run(
        study=hasty, methods=[methods.create("pixel")], budgets=[8], num_queries=1, results=tmp_path
    ).execute()  # fmt: skip
    assert (report.frame["status"] == "done").all()
    workspace = Run(study=hasty, methods=[], num_queries=1, results=tmp_path).open()
    [image] = workspace.images(workspace.queries(hasty.queries(1)))
    assert image.shape == (3, 32, 32)
