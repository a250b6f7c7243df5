"""The MSCOCO study: its data in the order of COCO's own interface, and its U-Net, on a COCO of 64 images made here."""

import json
import warnings

import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel

pytest.importorskip("transformers")
import own

from bench.authoring.mscoco import unet_settings
from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import select_weights
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
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


@pytest.mark.slow
def test_the_real_unet_trains(coco):
    """Two steps of the real U-Net, but for the width of the text states."""
    made = study(str(coco))
    model = DiffusionModel(made.model)
    data = TrainingData.of(made.dataset, model)
    run = TrainingRun(made.model, data, made.recipe, TrainingJob((3,), 0), device=torch.device("cpu"))
    losses = [run.advance(), run.advance()]
    assert all(0.5 < loss < 2 for loss in losses)
    assert not torch.equal(run.trained_state()["conv_in.weight"], model.unet.conv_in.weight)
