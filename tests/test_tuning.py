"""Tuning: it chooses by its own figures on held-out queries, and saves what it chose beside the method."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from bench import methods
from bench.data.face_queries import rare_parts
from bench.errors import InvalidInput
from bench.experiments.tuning import TruthTuningRun, TuningRun, behind_the_best, variants
from bench.records.names import MethodName
from bench.registry import tuned_on
from bench.studies import study


@pytest.fixture
def run(tiny, tmp_path):
    grid = variants(methods.create("random"), {"draw": [0, 1]})
    return TuningRun(study=tiny, tuned="random", methods=grid, budgets=[8], num_queries=2, results=tmp_path)


def test_tuning_keeps_the_settings_with_the_largest_mean_on_held_out_queries(run):
    found = run.execute()
    frame = found.frame.query("metric == 'loss_change' and design == 'paired'")
    assert set(frame["query"]) == {"held-out-00", "held-out-01"}
    means = frame.groupby("method_digest")["value"].mean()
    assert len(means) == 2
    assert found.best.digest == means.idxmax()


def test_older_figures_of_the_same_name_do_not_decide(run):
    found = run.execute()
    path = run.folder / "tuning" / "results.parquet"
    frame = pd.read_parquet(path)
    worse = frame[(frame["metric"] == "loss_change") & ~frame["method_digest"].isin([found.best.digest, ""])]
    older = worse.assign(method_digest="older settings", value=1e3)
    pd.concat([frame, older], ignore_index=True).to_parquet(path)
    assert run.execute().best.digest == found.best.digest


def test_how_far_a_setting_is_behind_is_paired_by_query():
    values = pd.DataFrame({"low": [0.0, 1.0, 2.0], "high": [1.0, 2.0, 3.0], "one": [0.5, float("nan"), float("nan")]})
    _, lines = behind_the_best(values)
    assert [line[0] for line in lines] == ["high", "low", "one"]
    assert lines[0] == ["high", "3", "2.0000", ""]
    assert lines[1][-1] == "1.0000 ± 0.0000"  # a query's own level is in neither
    assert lines[2] == ["one", "1", "0.5000", "0.5000 ± nan"]


def test_both_ways_of_tuning_say_how_far_each_setting_is_behind(run):
    _, lines = run.execute().tables()[-1]
    assert len(lines) == 2
    assert float(lines[0][2]) > float(lines[1][2])
    behind, _, error = lines[1][-1].partition(" ± ")
    assert float(behind) == pytest.approx(float(lines[0][2]) - float(lines[1][2]), abs=1e-4)
    assert float(error) >= 0


def test_saved_settings_are_what_later_runs_find(run, tmp_path, monkeypatch):
    found = run.execute()
    monkeypatch.setattr("methods.random_images.__file__", str(tmp_path / "method.py"))
    saved = json.loads(found.save("tiny").read_text())["random"]["tiny"]
    assert methods.create("random", **saved["settings"]).digest == found.best.digest
    assert saved["tuned_on"] == "2 held-out queries of tiny, mean loss change at K = 8, 2 trials"


def test_settings_that_a_run_was_given_are_not_said_to_be_tuned():
    method = methods.get("ours")
    said = tuned_on(method, "fashion", MethodName.of("ours", settings={"query_rise": 0.1}))
    assert said == "given: query_rise=0.1; the others as tuned"
    assert "held-out queries of fashion" in tuned_on(method, "fashion", MethodName.of("ours"))


def test_a_whole_number_and_the_same_float_are_one_setting():
    one, other = methods.create("trak", regularization=1), methods.create("trak", regularization=1.0)
    assert one.digest == other.digest
    assert type(one.settings()["regularization"]) is float


def _share_found(dataset, query, top):
    """Of the images that show any of the query's rare parts, the share in ``top``."""
    wanted = {index for part, value in rare_parts(query.prompt, query.seed) for index in dataset.carriers(part, value)}
    return len(wanted & set(top)) / len(wanted)


def test_tuning_by_carriers_retrains_nothing_and_keeps_the_setting_that_finds_most(tmp_path):
    faces = study("faces")
    quick = replace(faces, recipe=replace(faces.recipe, num_steps=2))
    tried = variants(methods.create("random"), {"draw": [0, 1, 2]})
    run = TruthTuningRun(study=quick, tuned="random", methods=tried, budgets=[500], num_queries=4, results=tmp_path)
    found, workspace = run.execute(), run.open()
    queries = workspace.queries(run.specs)
    recall = {}
    for method in tried:
        tops = workspace.selections(method, queries, (500,))
        shares = [_share_found(faces.dataset, query, tops[query.id, 500]) for query in queries]
        recall[method.digest] = sum(shares)
    assert found.best.digest == max(recall, key=lambda digest: recall[digest])
    assert len(set(recall.values())) == 3
    assert len(list(tmp_path.glob("models/*.safetensors"))) == 1
    head, lines = found.tables()[1]
    assert head[-1] == "behind the best ± 1 SE"
    assert float(lines[0][2]) == pytest.approx(max(recall.values()) / 4, abs=1e-4)
    assert "4 held-out queries of faces, carriers found at K = 500, 3 trials" in "\n".join(found.notes())


def test_tuning_by_carriers_needs_known_parts(tiny, tmp_path):
    with pytest.raises(InvalidInput, match="parts of the images of tiny are not known"):
        TruthTuningRun(study=tiny, tuned="random", methods=[methods.create("random")], results=tmp_path)
