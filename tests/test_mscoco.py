"""The MSCOCO study: its data in the order of COCO's own interface, and its U-Net, on a COCO of 64 images made here."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel

pytest.importorskip("transformers")
import own

from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import select_weights
from bench.diffusion.training import TrainingData
from bench.errors import InvalidInput
from bench.experiments.board_cost import Deviations, Scale, board_cost, mscoco, unet_settings
from bench.experiments.workspace import Workspace
from bench.records import rows as results
from bench.records.sealing import read_tensors
from bench.records.store import Store
from bench.registry import methods
from bench.studies import study
from cli import main

COUNT = 64


def bench(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder of images, a file of captions, two of each image, and a pipeline."""
    home = tmp_path_factory.mktemp("coco")
    (home / "train2017").mkdir()
    images, captions = [], []
    for number, (image, caption) in enumerate(own.drawn(COUNT, size=40)):
        key = 1000 - 7 * number  # the order is that of the file, not of the ids
        image.resize((48, 40)).save(home / "train2017" / f"{key:012d}.jpg")
        images.append({"id": key, "file_name": f"{key:012d}.jpg"})
        captions.append({"image_id": key, "id": 2 * number, "caption": f"{caption}\n"})
    second = [{**each, "id": each["id"] + 1, "caption": "another"} for each in captions]
    (home / "captions.json").write_text(json.dumps({"images": images, "annotations": [*captions, *second]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.pipeline(home / "sd")
    file = home / "mscoco.toml"
    given = ["--images", home / "train2017", "--captions", home / "captions.json", "--model", home / "sd"]
    result = bench("prepare", "mscoco", file, *given)
    assert result.exit_code == 0, result.output
    return file


def test_the_unet_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_settings())
    assert sum(weight.numel() for weight in unet.parameters()) == 57_373_316
    moving = select_weights(unet, "cross-attn-kv")
    assert (len(moving), sum(weight.numel() for weight in moving.values())) == (32, 7_077_888)


def test_order_ids_and_captions_are_those_of_coco(coco):
    made = study(str(coco))
    listed = json.loads((coco.parent / "captions.json").read_text())
    assert made.dataset.ids == tuple(str(image["id"]) for image in listed["images"])
    assert made.dataset.captions == tuple(each["caption"].strip() for each in listed["annotations"][:COUNT])
    assert made.dataset.images.shape == (COUNT, 32, 32, 3)
    assert (len(made.prompts), len(made.held_out_prompts)) == (110, 16)
    assert made.recipe.num_steps == 200 * COUNT / 128
    assert not set(made.prompts) & set(made.held_out_prompts)


def test_flips_are_made_before_the_autoencoder(coco):
    made = study(str(coco))
    model = DiffusionModel(made.model)
    data = TrainingData.of(made.dataset, model)
    mirrored = model.autoencoder.encode(made.dataset.pixels([5]).flip(-1))
    torch.testing.assert_close(data.latents[5, 1], mirrored[0])
    assert not torch.allclose(data.latents[5, 1], data.latents[5, 0].flip(-1), atol=1e-3)
    assert (model.clip_range, model.config.preconditioned) == (1.0, False)


def test_captions_of_another_kind_are_refused(coco, tmp_path):
    bad = tmp_path / "bad.json"
    for content in ("[", "[]", '{"images": []}'):
        bad.write_text(content)
        given = ["--images", coco.parent / "train2017", "--captions", bad, "--model", coco.parent / "sd"]
        result = bench("prepare", "mscoco", tmp_path / "coco.toml", *given)
        assert result.exit_code == 2, result.output
        assert "captions_train2017.json is expected" in result.output


def test_one_caption_or_the_first_five(tmp_path):
    """COCO's captions of an image do not stand together in the file, and some images have six."""
    home = own.coco(tmp_path, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.pipeline(home / "sd")
    content = json.loads((home / "captions.json").read_text())
    said = {image["id"]: [] for image in content["images"]}
    for each in content["annotations"]:
        said[each["image_id"]].append(each["caption"].strip())
    assert {len(texts) for texts in said.values()} == {5, 6}
    made = {}
    for name, more in (("one", []), ("five", ["--all-captions"])):
        given = ["--images", home / "train2017", "--captions", home / "captions.json", "--model", home / "sd"]
        result = bench("prepare", "mscoco", home / f"{name}.toml", *given, *more)
        assert result.exit_code == 0, result.output
        made[name] = study(str(home / f"{name}.toml"))
    one, five = made["one"].dataset, made["five"].dataset
    assert one.captions == five.captions == tuple(texts[0] for texts in said.values())
    assert one.more_captions == ()
    assert five.more_captions == tuple(tuple(texts[1:5]) for texts in said.values())
    assert made["one"].digest != made["five"].digest
    assert (one.texts - {""}) < five.texts
    assert Scale.of(made["five"]).captions == len(five.texts) > Scale.of(made["one"]).captions
    data = TrainingData.kept(tmp_path / "encoded", five, DiffusionModel(made["five"].model))
    assert (len(data.states), tuple(data.more_of.shape)) == (len(five.texts) + 1, (16, 4))


@pytest.mark.slow
def test_from_images_to_scores_with_the_real_unet(tmp_path):
    """All of it once: prepare 64 images, train the U-Net of 57,373,316 weights, query, score.

    Two steps move the weights; at the third the rate is 0. It takes two until the output hears the prompt.
    """
    home = own.coco(tmp_path, COUNT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.pipeline(home / "sd", text_dim=1024, tokens=77, levels=4)
    file = home / "coco.toml"
    given = ["--images", home / "train2017", "--captions", home / "captions.json", "--model", home / "sd"]
    result = bench("prepare", "mscoco", file, *given, "--all-captions")
    assert result.exit_code == 0, result.output
    steps = ("num_steps = 100\nbatch_size = 128", "num_steps = 3\nbatch_size = 4")
    own.edited(file, steps, ("num_steps = 50", "num_steps = 2"))
    made = study(str(file))
    assert made.dataset.images.shape == (COUNT, 128, 128, 3)
    assert (made.recipe.precision, made.recipe.compile) == ("bfloat16", True)
    unet = made.fresh_model().unet
    assert sum(weight.numel() for weight in unet.parameters()) == 57_373_316
    moving = select_weights(unet, "cross-attn-kv")
    assert (len(moving), sum(weight.numel() for weight in moving.values())) == (32, 7_077_888)
    quick = ["--set", "ours.num_fisher_draws=2", "--set", "ours.num_gradient_draws=2",
             "--set", "ours.timestep_stride=1000"]  # fmt: skip
    asked = ["--study", file, "--results", tmp_path / "results", "--prompt", made.prompts[0], "--top", 4]
    result = bench("attribute", "--method", "ours", *asked, *quick)
    assert result.exit_code == 0, result.output
    assert "compile = true is for a GPU" in " ".join(result.output.split())
    workspace = Workspace(made, tmp_path / "results", metrics=[])
    trained = workspace.original.state()
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    assert trained["conv_out.weight"].abs().sum() > 0  # all 0 at the beginning
    [scores] = (tmp_path / "results" / "cache" / "scores").glob("ours-*.safetensors")
    found = read_tensors(scores)[0]["scores"]
    assert (tuple(found.shape), found.std() > 0) == ((COUNT,), True)
    again = bench("attribute", "--method", "pixel", *asked)
    assert (again.exit_code, "train the original" in again.output) == (0, False), again.output


def small(coco):
    """The study file with a narrower U-Net and batches of 4, beside it."""
    text = (
        coco.read_text()
        .replace("[128, 256, 256, 256]", "[32, 32, 32, 32]")
        .replace("batch_size = 128", "batch_size = 4")
    )
    file = coco.with_name("narrow.toml")
    file.write_text(text.replace('name = "mscoco"', 'name = "narrow"'))
    return file


def rows_of(values, nothing):
    """A frame of rows of two methods and random, with nothing removed beside them."""
    blank = {name: 0 if kind != "str" else "" for name, (kind, _) in results.COLUMNS.items()}
    shared = {"study": "made", "metric": "loss_change", "status": "done"}
    lines = [
        {"method": method, "method_digest": method, "query": f"q{i}", "query_digest": f"q{i}", "k": 8, "value": value,
         "design": "paired", "model_key": f"{method}{i}", **shared}
        for method, column in values.items() for i, value in enumerate(column)
    ]  # fmt: skip
    lines += [
        {"method": "nothing removed", "method_digest": "n", "query": f"q{i}", "query_digest": f"q{i}", "value": value,
         "design": "unpaired", **shared}
        for i, value in enumerate(nothing)
    ]  # fmt: skip
    frame = pd.DataFrame([blank | line for line in lines])
    return frame.astype({name: kind for name, (kind, _) in results.COLUMNS.items()})


def test_paired_queries_have_the_power_of_unpaired_ones(tmp_path):
    values = {"pixel": [1.0, 2.0, 3.0, 4.0], "ours": [2.0, 2.0, 4.0, 6.0], "random": [0.0, 0.0, 1.0, 0.0]}
    results.merge(Store(tmp_path), rows_of(values, [3.0, 5.0, 3.0, 5.0]))
    found = Deviations.of(tmp_path)
    between = np.var([1, 0, 1, 2], ddof=1)
    unpaired = np.var([3, 5, 3, 5], ddof=1)
    assert (found.pairs, found.unpaired) == ([pytest.approx(between)], pytest.approx(unpaired))
    assert found.judged == math.ceil(110 * between / (between + unpaired)) == 37
    alone = np.var([0, 0, 1, 0], ddof=1)
    assert found.curve_models == math.ceil(1100 / 37 * alone / (alone + unpaired / 2)) == 9
    assert found.same_sets == 0
    with pytest.raises(InvalidInput, match="does not tell the variances"):
        Deviations.of(tmp_path / "empty")


def test_a_board_costs_what_its_parts_cost(tmp_path):
    values = {"pixel": [1.0, 2.0, 3.0, 4.0], "ours": [2.0, 2.0, 4.0, 6.0], "random": [0.0, 0.0, 1.0, 0.0]}
    results.merge(Store(tmp_path), rows_of(values, [3.0, 5.0, 3.0, 5.0]))
    cost = board_cost(mscoco(), folders=[tmp_path])
    parts = cost.published
    assert (parts["removals"].trainings, parts["removals"].hours) == (3630, pytest.approx(3630 * 16, rel=1e-4))
    assert (parts["random curve"].trainings, parts["originals"].trainings) == (620, 20)
    per_query = 118_287 * 2 * 20 * 5
    assert parts["scores by unlearning"].forwards == 111 * per_query
    assert parts["scores by unlearning"].hours == pytest.approx(111 * 20 + 110 * 2 / 60, rel=0.01)  # the paper: 2 min
    total = sum(part.hours for part in parts.values())
    assert 60_000 < total < 77_000
    paired = cost.paired(cost.measured[0])
    assert paired["removals"].trainings == 11 * 37 * 3
    [(_, costs), (_, savings), _] = cost.tables()
    shares = [float(line[-1].split()[-1].rstrip("%")) for line in savings[:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert costs[-1][-1] == f"{sum(part.hours for part in paired.values()) / 77_000:.0%}"
    less = board_cost(mscoco(), [methods.create("pixel"), methods.create("random")], [tmp_path])
    assert (less.methods, less.unlearning, less.published["scores by unlearning"].hours) == (1, 0, 0)


def test_a_board_can_be_planned_before_and_after_there_are_data(coco, tmp_path):
    results.merge(Store(tmp_path), rows_of({"pixel": [1.0, 2, 3, 5], "ours": [2.0, 2, 4, 6], "random": [0.0, 0, 1, 0]},
                                           [3.0, 5, 3, 5]))  # fmt: skip
    before = bench("plan", "--study", "mscoco", "--variances", tmp_path)
    assert before.exit_code == 0, before.output
    for words in (
        "57,373,316 parameters",
        "A100-hours at the paper's pace",
        "saved in",
        "variances of made",
        "37.3 GB",
    ):
        assert words in before.output
    assert not (tmp_path / "runs").exists()
    given = ["--study", small(coco), "--method", "pixel", "--queries", 1, "--k", 20, "--results", tmp_path / "run"]
    after = bench("plan", *given, "--variances", tmp_path)
    assert after.exit_code == 0, after.output
    for words in ("retrainings: ", "time here", "saved in", "hours of its trainings on the device at hand"):
        assert words in after.output
    refused = bench("plan", "--study", "tiny", "--method", "pixel", "--variances", tmp_path)
    assert (refused.exit_code, "MSCOCO alone" in refused.output) == (2, True)
    refused = bench("run", "--study", "mscoco", "--method", "pixel")
    assert (refused.exit_code, "bench prepare mscoco" in refused.output.replace("\n", " ")) == (2, True)
