"""Localized attribution: the contrasts by hand, which queries and boxes, and the whole experiment on few steps."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from bench.data.face_queries import asked_parts
from bench.diffusion.losses import query_loss_map, query_losses
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.errors import InvalidInput
from bench.experiments.localized import Localized, partner, random_box
from bench.experiments.planning import plan
from bench.foundation.progress import Progress
from bench.records import folder, tables
from bench.records.store import Store
from bench.registry import methods, metrics
from bench.report.localized import CHANCE, COLUMNS, RANDOM_BOX, SHARE, WHOLE, contrasts, switches
from bench.report.statistics import interval
from bench.studies import study
from cli import main

PARTS = ("hat", "clothes")
LEFT, RIGHT = "0,0,7,14", "7,0,14,14"


@pytest.fixture(scope="module")
def faces():
    """The data of ``faces`` with a model that is hardly trained."""
    whole = study("faces")
    return replace(whole, recipe=replace(whole.recipe, num_steps=2), sampler=Sampler(num_steps=2, guidance=1.0))


def frame_of(given, metric="m", k=5, label="x"):
    """Rows from (chosen, measured) → values of the queries."""
    return pd.DataFrame(
        [
            {"metric": metric, "k": k, "label": label, "query": f"q{i}", "chosen_in": chosen, "measured_in": measured,
             "value": value}
            for (chosen, measured), values in given.items()
            for i, value in enumerate(values)
        ]
    )  # fmt: skip


def test_switch_interaction_and_gain_are_those_of_the_definitions():
    drawn = np.random.default_rng(0).normal(size=(8, 6))
    names = [(chosen, measured) for chosen in (*PARTS, WHOLE, RANDOM_BOX) for measured in PARTS]
    table = dict(zip(names, drawn, strict=True))
    frame = frame_of(table)
    aa, ab, ba, bb, wa, wb, ra, rb = drawn
    [hat, clothes] = switches(frame, PARTS).to_dict("records")
    assert (hat["part"], clothes["part"]) == PARTS
    assert (hat["switch"], hat["low"], hat["high"]) == pytest.approx(interval(aa - ba))
    assert (clothes["switch"], clothes["low"], clothes["high"]) == pytest.approx(interval(bb - ab))
    assert [hat[name] for name in ("own", "other", "whole", "random")] == pytest.approx(
        [x.mean() for x in (aa, ba, wa, ra)]
    )
    [line] = contrasts(frame, PARTS).to_dict("records")
    for name, expected in {
        "interaction": (aa - ab - ba + bb) / 2, "over_whole": (aa + bb - wa - wb) / 2,
        "over_random": (aa + bb - ra - rb) / 2,
    }.items():  # fmt: skip
        assert (line[name], line[f"{name}_low"], line[f"{name}_high"]) == pytest.approx(interval(expected))
    assert line["interaction"] == pytest.approx((hat["switch"] + clothes["switch"]) / 2)


def test_what_has_no_regions_has_means_and_no_contrast():
    frame = frame_of({(WHOLE, "hat"): [0.5, 0.7], (WHOLE, "clothes"): [0.1, 0.3]}, label="random")
    [hat, _] = switches(frame, PARTS).to_dict("records")
    assert hat["whole"] == pytest.approx(0.6)
    assert hat["queries"] == 2
    assert np.isnan(hat["switch"])
    assert contrasts(frame, PARTS).empty


def test_a_value_that_is_missing_costs_its_query_alone():
    frame = frame_of({(a, b): [1.0 + (a == b), 2.0, 3.0, 4.0, 5.0] for a in PARTS for b in PARTS})
    frame.loc[0, "value"] = np.nan
    [line] = contrasts(frame, PARTS).to_dict("records")
    assert line["queries"] == 4
    assert line["interaction"] == pytest.approx(0.0)


def test_a_random_box_that_falls_on_a_box_keeps_its_own_row(tmp_path):
    rows = frame_of({(chosen, "hat"): [1.0] for chosen in ("hat", RANDOM_BOX)})
    blank = dict.fromkeys(COLUMNS, "") | {"k": 5, "seed": 0, "study_digest": "s"}
    lines = [blank | {**row, "chosen_box": "2,0,14,4"} for row in rows.drop(columns="label").to_dict("records")]
    new = pd.DataFrame(lines, columns=list(COLUMNS))
    kept = [tables.LOCALIZED.merge(Store(tmp_path), new) for _ in range(2)]
    assert [len(frame) for frame in kept] == [2, 2]


def test_the_partner_lies_elsewhere_and_is_about_as_large(faces):
    hat = faces.region("hat")
    assert partner(faces, hat).name == "clothes"
    assert partner(faces, faces.region("clothes")).name == "hat"
    with pytest.raises(InvalidInput, match="give a second --box"):
        partner(faces, faces.region("background"))


def test_a_random_box_is_as_large_and_keyed_by_the_query(faces):
    nothing = torch.zeros(3, 16, 16)
    queries = [Query(s.id, s.prompt, s.seed, nothing, nothing, faces.sampler) for s in faces.queries(16)]
    hat = faces.region("hat")
    boxes = [random_box(hat, query, 0) for query in queries]
    assert {int(box.mask.sum()) for box in boxes} == {int(hat.mask.sum())}
    assert len({box.box for box in boxes}) > 8
    assert boxes == [random_box(hat, query, 0) for query in queries]
    assert boxes != [random_box(hat, query, 1) for query in queries]


def test_the_map_of_a_query_has_the_mean_of_its_losses_and_the_metric_looks_inside(tiny, model, queries):
    query, times = queries[0], range(0, 1000, 50)
    losses = query_losses(model, query, times, seed=0)
    found = query_loss_map(model, query, times, seed=0)
    assert found.shape == (14, 14)
    assert float(found.mean()) == pytest.approx(float(losses.mean()), rel=1e-5)
    metric, nothing = metrics.create("loss_change_inside"), torch.zeros(14, 14)
    left, right = (metric.value(query.within(tiny.region(box)), nothing, found) for box in (LEFT, RIGHT))
    assert left == pytest.approx(float(found[:, :7].mean()), rel=1e-5)
    assert (left + right) / 2 == pytest.approx(metric.value(query, nothing, found), rel=1e-5)


def test_the_image_inside_is_compared_pixel_by_pixel(tiny, queries):
    metric, before, after = metrics.create("regeneration_mse_inside"), torch.zeros(1, 14, 14), torch.zeros(1, 14, 14)
    after[:, :, 7:] = 0.5
    found = [metric.value(queries[0].within(tiny.region(box)), before, after) for box in (LEFT, RIGHT)]
    assert found == [0.0, 0.25]
    assert metric.value(queries[0], before, after) == 0.125


def local(tiny, place, **changes):
    usual = {"study": tiny, "methods": [methods.create("pixel")], "boxes": (LEFT, RIGHT), "floors": ("random",)}
    return Localized(**(usual | {"results": place, "budgets": [8], "num_queries": 2} | changes))


def test_the_counterfactual_from_boxes_to_contrasts(tiny, tmp_path):
    before = plan(local(tiny, tmp_path))
    assert before.to_train > 8
    report = local(tiny, tmp_path).execute()
    frame = report.frame
    assert list(frame.columns) == [*COLUMNS, "label"]
    assert report.problems() == []
    counts = frame.groupby(["label", "metric"]).size()
    assert set(counts.index.get_level_values("metric")) == {"loss_change_inside", "regeneration_mse_inside"}
    assert counts["pixel"].tolist() == [2 * 4 * 2] * 2  # queries × choices × boxes
    assert counts["random"].tolist() == [2 * 2] * 2
    removed = frame[frame["label"] == "pixel"].groupby("query")["model_key"].nunique()
    assert (removed >= 3).all()  # the boxes name different images
    [line, _] = contrasts(frame, (LEFT, RIGHT)).to_dict("records")
    table = frame[(frame["label"] == "pixel") & (frame["metric"] == line["metric"])]
    means = table.groupby(["chosen_in", "measured_in"])["value"].mean()
    crossed = means[LEFT, LEFT] - means[LEFT, RIGHT] - means[RIGHT, LEFT] + means[RIGHT, RIGHT]
    assert line["interaction"] == pytest.approx(crossed / 2)
    assert (tmp_path / folder.LOCALIZED_TABLE).read_text().count("pixel") == 2 * 2 + 2
    assert [path.exists() for path in report.figures] == [True]
    manifest = json.loads((tmp_path / folder.LOCALIZED_MANIFEST).read_text())
    assert set(manifest["methods"]) == {"pixel", "random"}
    assert manifest["runs"][0]["boxes"] == {LEFT: LEFT, RIGHT: RIGHT}

    told = []

    class Told(Progress):
        def say(self, text):
            told.append(text)

    after = plan(local(tiny, tmp_path))
    assert (after.to_train, after.to_observe, after.to_score) == (0, 0, 0)
    again = local(tiny, tmp_path).execute(Told())
    assert any("0 to train" in line for line in told)
    pd.testing.assert_frame_equal(again.frame, frame)


def test_carriers_are_counted_without_training(faces, tmp_path):
    run = Localized(
        study=faces, methods=[methods.create(name) for name in ("pixel", "carriers", "clip")], boxes=["hat"],
        retrain=False, floors=("random",), results=tmp_path, budgets=[50], num_queries=4,
    )  # fmt: skip
    assert run.parts == PARTS
    assert all(set(PARTS) <= asked_parts(spec.prompt).keys() for spec in run.specs)
    report = run.execute()
    frame = report.frame
    assert set(frame["metric"]) == {SHARE}
    assert "clip has no regions" in report.skipped["clip"]
    ceiling = frame[(frame["label"] == "carriers") & frame["chosen_in"].isin(PARTS)]
    assert set(ceiling.loc[ceiling["chosen_in"] == ceiling["measured_in"], "value"]) == {1.0}
    assert len(list((tmp_path / "models").glob("*"))) == 1  # θ0, which makes the queries
    chance = frame[(frame["label"] == CHANCE) & (frame["measured_in"] == "hat")].set_index("query")["value"]
    own = frame[(frame["label"] == "pixel") & (frame["chosen_in"] == "hat") & (frame["measured_in"] == "hat")]
    workspace = run.open()
    for query in workspace.queries(run.specs):
        carriers = set(faces.dataset.carriers("hat", asked_parts(query.prompt)["hat"]))
        assert chance[query.id] == len(carriers) / 6000
        top = workspace.selections(run.methods[0], [query.within(faces.region("hat"))], [50])[query.id, 50]
        assert own.set_index("query")["value"][query.id] == len(carriers.intersection(top)) / 50


def test_methods_without_regions_alone_are_refused(faces, tmp_path):
    with pytest.raises(InvalidInput, match="clip cannot attribute a box"):
        Localized(study=faces, methods=[methods.create("clip")], boxes=["hat"], results=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localized", "--box", "hat", "--box", "hat"], "are the same box"),
        (["localized", "--box", "hat", "--box", "mouth", "--box", "beard"], "one or two boxes are expected"),
        (["localized"], "given 0 times"),
        (["localized", "--box", "0,0,4,4", "--box", "hat"], "carriers are counted in parts that are "),
        (["localized", "--box", "background"], "give a second --box"),
        (["localized", "--box", "hat", "--queries", "65"], "queries of study 'faces' ask for hat and clothes"),
        (["run", "--box", "hat", "--metric", "loss_change"], "loss_change does not measure in a box"),
        (["run", "--box", "hat", "--until-settled", "all"], "--box and --until-settled do not go together"),
        (["run", "--box", "0,0,17,4"], "the images have 16 × 16 pixels"),
    ],
)
def test_bad_boxes_are_one_clear_line(tmp_path, arguments, message):
    command, *rest = arguments
    result = CliRunner().invoke(main, [command, "--method", "pixel", *rest, "--results", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "models").exists()
