"""The metrics against hand-made observations; controls, encoders, evaluators; retrieval metrics."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from test_flow import quick_run

from bench import metrics
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.errors import InvalidInput, ResultsFolderError, Unavailable
from bench.experiments.evaluation import value_of
from bench.experiments.leave_k_out import Run
from bench.experiments.retrieval import average_precision, recall_at_k
from bench.foundation.progress import Progress
from bench.pretrained.encoders import encoder
from bench.records import folder
from bench.studies import MAX_CONTROLS, study

SIMILARITY = "regeneration_similarity@efficientnet"
WITH_CONTROLS = ("loss_change", "specificity")


def chosen(*names):
    return [metrics.create(name) for name in names]


def observed(metric, values):
    return {f"{query.digest}.{metric.observation.name}": torch.tensor(value) for query, value in values.items()}


def stand_in(seed):
    return Query(f"q{seed}", f"prompt {seed}", seed, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), Sampler(num_steps=1))


@pytest.mark.parametrize("name", ["specificity", "regeneration_specificity"])
def test_specificity_takes_the_mean_of_the_controls_off(name):
    metric, [q, a, b] = metrics.create(name), [stand_in(seed) for seed in range(3)]
    before = observed(metric, {key: [0.0, 0.0] for key in (q, a, b)})
    damaged = observed(metric, {key: [1.0, 1.0] for key in (q, a, b)})
    forgotten = observed(metric, {q: [1.0, 1.0], a: [0.0, 0.0], b: [0.0, 0.0]})
    assert value_of(metric, q, [a, b], before, damaged) == (0.0, "")
    assert value_of(metric, q, [a, b], before, forgotten) == (1.0, "")
    value, reason = value_of(metric, q, [], before, forgotten)
    assert value != value
    assert "no query of the study has another prompt" in reason


def test_controls_have_other_prompts_and_do_not_depend_on_the_run():
    fashion = study("fashion")
    pool = fashion.queries(len(fashion.prompts))
    for spec in pool:
        controls = fashion.controls(spec)
        assert len({control.prompt for control in controls}) == len(controls) == 7
        assert spec.prompt not in {control.prompt for control in controls}
    assert fashion.controls(pool[1]) == fashion.controls(pool[9])  # the same prompt
    many = replace(fashion, prompts=tuple(f"prompt {i}" for i in range(100)))
    specs = many.queries(2)
    assert len(many.controls(specs[0])) == MAX_CONTROLS
    assert many.controls(specs[0]) != many.controls(specs[1])
    assert replace(fashion, prompts=fashion.prompts[:1]).controls(pool[0]) == []


def test_held_out_queries_are_controlled_by_held_out_ones():
    tiny = study("tiny")
    run = Run(study=tiny, methods=[], held_out=True, metrics=chosen("specificity"))
    held_out = tiny.held_out_queries(len(tiny.held_out_prompts))
    assert run.control_specs(held_out[0]) == held_out[1:]
    assert Run(study=tiny, methods=[]).control_specs(held_out[0]) == []


@pytest.fixture(scope="module")
def controlled(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled")
    run = quick_run(tiny, folder, names=("pixel",), num_queries=1, metrics=chosen(*WITH_CONTROLS))
    return run, run.execute()


def test_specificity_comes_from_the_records_of_the_controls(controlled, tiny):
    run, report = controlled
    rows = report.frame[report.frame["method"] == "pixel"].set_index("metric")
    assert rows.loc["specificity", "status"] == "done"
    workspace = run.open()
    [query] = workspace.queries(run.specs)
    [(original, job)] = [
        (comparison.original, comparison.retrained)
        for comparison in run.comparisons(workspace, [query], {}, ahead=True).comparisons
        if comparison.named.method == "pixel"
    ]
    before, _ = workspace.ledger.observed(original)
    after, _ = workspace.ledger.observed(job)
    changes = {
        name.partition(".")[0]: float((after[name].double() - before[name].double()).mean())
        for name in after
        if name.endswith("query_loss@5")
    }
    target = changes.pop(query.digest)
    assert len(changes) == 7
    assert rows.loc["loss_change", "value"] == pytest.approx(target)
    assert rows.loc["specificity", "value"] == pytest.approx(target - sum(changes.values()) / 7)
    assert "specificity" in set(report.table["metric"])
    assert report.manifest["metrics"]["specificity"]["evaluator"] == rows.loc["specificity", "evaluator"]


def test_controls_are_observed_later_where_the_model_is_kept_and_after_training_again_where_not(tiny, tmp_path):
    plain = quick_run(tiny, tmp_path, names=("pixel",), num_queries=1, metrics=chosen("loss_change"))
    first = plain.execute()
    kept = {path.name for path in (tmp_path / "models").iterdir()}
    lost = first.frame.query("method == 'pixel'")["model_key"].iloc[0]
    (tmp_path / "models" / f"{lost}.safetensors").unlink()
    said = []

    class Listener(Progress):
        def say(self, text):
            said.append(text)

    again = replace(plain, metrics=chosen(*WITH_CONTROLS)).execute(Listener())
    assert f"{len(kept)} models: 0 cached, {len(kept) - 1} to observe, 1 to train (1 of them again" in " ".join(said)
    losses = again.frame[again.frame["metric"] == "loss_change"].reset_index(drop=True)
    pd.testing.assert_series_equal(losses["value"], first.frame["value"])
    assert (again.frame["status"] == "done").all()


def test_similarity_is_one_for_equal_images_and_less_for_others(tiny):
    metric = metrics.create(SIMILARITY)
    if why := metric.unavailable():
        pytest.skip(why)
    one, other = tiny.dataset.pixels([0])[0], tiny.dataset.pixels([70])[0]
    assert metric.value(stand_in(0), one, one) == pytest.approx(1, abs=1e-12)
    assert -1 <= metric.value(stand_in(0), one, other) < 0.999
    assert not metric.higher_is_better
    assert "sha256" in metric.sources()["efficientnet"]


def test_there_is_a_similarity_for_each_image_encoder_and_none_is_computed_with_random_weights(monkeypatch):
    names = [name for name in metrics.names() if name.startswith("regeneration_similarity@")]
    assert names == [f"regeneration_similarity@{name}" for name in ("clip", "dino", "dinov2", "efficientnet")]
    assert len({metrics.create(name).observation.name for name in names}) == 1
    monkeypatch.setenv(encoder("efficientnet").weights.variable, "random")
    with pytest.raises(Unavailable, match="are random"):
        metrics.create(SIMILARITY).prepare()


def test_a_metric_that_cannot_be_computed_is_skipped_with_its_reason(controlled, monkeypatch):
    run, _ = controlled
    monkeypatch.setenv(encoder("efficientnet").weights.variable, "random")
    report = replace(run, metrics=chosen("loss_change", SIMILARITY)).execute()
    assert "are random" in report.skipped_metrics[SIMILARITY]
    assert set(report.frame["metric"]) == {"loss_change"}
    with pytest.raises(InvalidInput, match="no metric can be computed here"):
        replace(run, metrics=chosen(SIMILARITY)).execute()


def test_figures_of_different_evaluators_are_never_mixed(controlled, monkeypatch):
    run, _ = controlled
    monkeypatch.setattr(metrics.get("loss_change"), "version", 2)
    with pytest.raises(ResultsFolderError, match="by evaluator"):
        run.execute()


def test_rows_from_before_evaluators_were_kept_are_read(controlled):
    run, _ = controlled
    path = run.folder / folder.ROWS
    kept = pd.read_parquet(path)
    kept.drop(columns="evaluator").to_parquet(path)
    assert set(run.execute().merged["evaluator"]) >= {metrics.create("loss_change").digest}
    assert "" not in set(pd.read_parquet(path)["evaluator"])


def test_recall_divides_by_the_number_of_exemplars():
    ranking = ["a", "x", "b", "y", "z", "c"]
    assert recall_at_k(ranking, ["a", "b", "c"], 3) == pytest.approx(2 / 3)
    assert recall_at_k(ranking, ["a"], 1) == 1
    assert recall_at_k(ranking, ["y"], 3) == 0
    assert recall_at_k(["a", "b", "c"], ["a", "b", "c"], 2) == pytest.approx(2 / 3)


def test_average_precision_is_the_mean_precision_at_each_exemplar():
    assert average_precision(["a", "x", "b", "y"], ["a", "b"]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(["a", "b", "x"], ["b", "a"]) == 1
    assert average_precision(["x", "y", "a"], ["a"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("ranking", "exemplars", "words"),
    [
        (["a"], [], "no exemplars"),
        (["a", "a"], ["a"], "more than once"),
        (["a"], ["b"], "1 of 1 exemplars are missing"),
    ],
)
def test_bad_rankings_are_refused(ranking, exemplars, words):
    with pytest.raises(InvalidInput, match=words):
        recall_at_k(ranking, exemplars)
    with pytest.raises(InvalidInput, match=words):
        average_precision(ranking, exemplars)
