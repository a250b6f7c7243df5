"""The import of what the paper's authors released, on files of that layout made here: what it takes and refuses."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("transformers")
import own

from bench.authoring import mscoco
from bench.diffusion import released
from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput
from bench.experiments.board_cost import unet_settings
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.registry import methods
from bench.studies import study
from cli import main

COUNT, QUERIES = 24, 4
LATENTS, STATES = "coco17_train_latents.npy", "coco17_train_text_embeddings.npy"
SAMPLES, SAMPLE_STATES = "coco17_sample_latents.npy", "coco17_sample_text_embeddings.npy"


def bench(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A U-Net of the same blocks with 8 channels each: the real one is 229 MB (tests/test_mscoco.py trains it)."""
    slim = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "attention_head_dim": 1}
    monkeypatch.setattr(mscoco, "unet_settings", lambda *sizes: {**unet_settings(*sizes), **slim})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = own.coco(tmp_path_factory.mktemp("released"), COUNT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.pipeline(place / "sd")
    return place


def prepared(home, file, *more):
    given = ["--images", home / "train2017", "--captions", home / "captions.json", "--model", home / "sd"]
    return bench("prepare", "mscoco", file, *given, *more)


@pytest.fixture
def plain(home, tmp_path):
    """The study of the same images without the release, with all captions."""
    result = prepared(home, tmp_path / "plain.toml", "--all-captions")
    assert result.exit_code == 0, result.output
    return study(str(tmp_path / "plain.toml"))


@pytest.fixture
def release(home, plain):
    """The files in their layout: latents in float32, text states in half precision."""
    place = home / "release"
    if place.exists():
        return place
    (place / "sample").mkdir(parents=True)
    model, data = DiffusionModel(plain.model, seed=5), plain.dataset
    sides = [model.autoencoder.encode(data.pixels(flipped=flipped)) for flipped in (False, True)]
    latents = torch.cat(sides)
    np.save(place / LATENTS, latents + 0.01 * latents.std() * seeds.normal(tuple(latents.shape), "posterior"))
    texts = [[first, *more] for first, more in zip(data.captions, data.more_captions, strict=True)]
    assert {len(each) for each in texts} == {5}
    states = torch.stack([model.text_encoder.encode(each) for each in texts])
    np.save(place / STATES, states.numpy().astype(np.float16))
    torch.save(model.unet.state_dict(), place / "model.bin")
    named = model.unet.named_parameters()
    torch.save(
        {name: seeds.normal(tuple(value.shape), "fisher", name).square() for name, value in named},
        place / "fisher_info.pt",
    )
    prompts = ["teal disc", "crimson square, teal ground", "ochre cross", "indigo disc"]
    made = latents[:QUERIES] * 1.5
    np.save(place / SAMPLES, made)
    np.save(place / SAMPLE_STATES, model.text_encoder.encode(prompts)[:, None].numpy())
    (place / "sample_caption.txt").write_text("\n".join(prompts) + "\n")
    for number, image in enumerate(model.autoencoder.decode(made)):
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(place / "sample" / f"{number}.png")
    return place


def test_latents_text_states_model_queries_and_fisher_are_those_released(home, plain, release, tmp_path):
    result = prepared(home, tmp_path / "coco.toml", "--released", release, "--all-captions")
    assert result.exit_code == 0, result.output
    made = study(str(tmp_path / "coco.toml"))
    workspace = Workspace(made, tmp_path / "results", metrics=[])
    data, latents, states = workspace.ledger.data, np.load(release / LATENTS), np.load(release / STATES)
    assert np.array_equal(data.latents[:, 0], latents[:COUNT])
    assert np.array_equal(data.latents[:, 1], latents[COUNT:])
    for image, number in ((0, 0), (3, 4), (COUNT - 1, 2)):
        row = data.caption_rows(torch.tensor([image]), torch.tensor([number]))
        assert torch.equal(data.states_at(row)[0], torch.from_numpy(states[image, number]).float())
    empty = DiffusionModel(made.model).text_encoder.encode([""])[0]
    assert torch.equal(data.states_at(torch.tensor([data.empty_state, 0]))[0], empty)
    assert made.dataset.ids == plain.dataset.ids

    kept = torch.load(release / "model.bin", weights_only=True)
    assert all(torch.equal(weight, kept[name]) for name, weight in workspace.original.unet.state_dict().items())
    specs = made.queries(QUERIES)
    assert [spec.prompt for spec in specs] == (release / "sample_caption.txt").read_text().split("\n")[:-1]
    queries = workspace.queries([*specs[:2], made.held_out_queries(1)[0]])
    assert np.array_equal(torch.stack([each.latent for each in queries[:2]]), np.load(release / SAMPLES)[:2])
    assert queries[0].noise.isnan().all()
    assert not queries[2].noise.isnan().any()  # of another prompt: θ0 makes it

    fisher = torch.load(release / "fisher_info.pt", weights_only=True)
    found = methods.create("ours").fisher_of(workspace.context())
    assert found.keys() == select_weights(workspace.original.unet, "cross-attn-kv").keys()
    assert all(torch.equal(value, fisher[name].double()) for name, value in found.items())


def test_a_released_model_is_attributed_and_not_retrained(home, release, tmp_path):
    file, results = tmp_path / "coco.toml", ["--results", tmp_path / "results"]
    assert prepared(home, file, "--released", release).exit_code == 0
    asked = ["--study", file, "--prompt", "teal disc", "--seed", 0, "--top", 3, *results]
    quick = ["--set", "ours.num_gradient_draws=8", "--set", "ours.timestep_stride=1000"]
    result = bench("attribute", "--method", "ours", *asked, *quick)
    assert result.exit_code == 0, result.output
    refused = bench("run", "--study", file, "--method", "pixel", "--queries", 1, "--k", 2, *results)
    assert refused.exit_code == 2
    assert "[released] weights" in " ".join(refused.output.split())
    journey = bench("attribute", "--method", "journey_trak", *asked)
    assert (journey.exit_code, "came from is not known" in " ".join(journey.output.split())) == (2, True)


def test_the_data_alone_can_be_trained_on(home, release, tmp_path):
    file = tmp_path / "coco.toml"
    assert prepared(home, file, "--released", release, "--weights", "fresh", "--all-captions").exit_code == 0
    own.edited(
        file,
        ("num_steps = 38", "num_steps = 3"),
        ("batch_size = 128", "batch_size = 4"),
        ("[sampler]\nnum_steps = 50", "[sampler]\nnum_steps = 2"),
    )
    made = study(str(file))
    assert (made.given, made.released.given, made.recipe.num_steps) == ("", False, 3)
    given = ["--study", file, "--method", "pixel", "--queries", 1, "--k", 2, "--floor", "random"]
    result = bench("run", *given, "--results", tmp_path / "results")
    assert result.exit_code == 0, result.output
    assert "loss_change" in result.output


def test_an_import_is_part_of_the_study_and_moves_with_it(home, release, plain, tmp_path):
    digests = {}
    for name, more in (("all", ["--all-captions"]), ("one", []), ("fresh", ["--weights", "fresh"])):
        file = tmp_path / name / "coco.toml"
        file.parent.mkdir()
        shutil.copytree(release, file.parent / "release")
        assert prepared(home, file, "--released", file.parent / "release", *more).exit_code == 0
        digests[name] = study(str(file)).digest
    assert len({*digests.values(), plain.digest}) == 4
    (tmp_path / "all").rename(tmp_path / "moved")
    moved = study(str(tmp_path / "moved" / "coco.toml"))
    assert moved.digest == digests["all"]
    assert Workspace(moved, tmp_path / "results", metrics=[]).ledger.data.more_of.shape == (COUNT, 4)
    states = tmp_path / "moved" / "release" / STATES
    states.write_bytes(states.read_bytes()[:-2])
    with pytest.raises(InvalidInput, match="is not the file that was imported"):
        moved.released.data(DiffusionModel(moved.model))
    text = (tmp_path / "one" / "coco.toml").read_text()
    (tmp_path / "one" / "coco.toml").write_text(text.replace('weights = "given"', 'weights = "fresh"'))
    other = study(str(tmp_path / "one" / "coco.toml"))
    with pytest.raises(InvalidInput, match="holds another import"):
        other.released.data(DiffusionModel(other.model))


def test_reading_the_text_states_goes_on_where_it_was_interrupted(home, release, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "BLOCK", 5)
    read, real = [], released.hashlib.sha256

    def advance(name, done, total):
        if name == "read text states":
            read.append(done)
            if len(read) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr("bench.foundation.progress.Progress.advance", lambda self, *told: advance(*told))
    given = [home / "train2017", home / "captions.json", home / "sd"]
    with pytest.raises(KeyboardInterrupt):
        mscoco.prepare_mscoco(tmp_path / "coco.toml", *given, released=release)
    assert not (tmp_path / "coco.toml").exists()
    mscoco.prepare_mscoco(tmp_path / "coco.toml", *given, released=release)
    assert read == [5, 10, 15, 20, 24]
    mscoco.prepare_mscoco(tmp_path / "again.toml", *given, released=release)
    assert study(str(tmp_path / "coco.toml")).digest == study(str(tmp_path / "again.toml")).digest
    assert real is released.hashlib.sha256


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def array(name, change):
    return lambda place: np.save(place / name, change(np.load(place / name)))


def tensors(name, change):
    return lambda place: torch.save(change(torch.load(place / name, weights_only=True)), place / name)


def negative(found):
    return {name: -value - 1 for name, value in found.items()}


def objects(place):
    np.save(place / LATENTS, np.array([Code()], dtype=object), allow_pickle=True)


def half_a_picture(place):
    file = place / "sample" / "1.png"
    file.write_bytes(file.read_bytes()[:60])


BAD = {
    "no latents": (lambda place: (place / LATENTS).unlink(), "holds coco17_train_latents.npy 0 times"),
    "twice": (lambda place: shutil.copytree(place / "sample", place / "b" / "sample"), "holds sample 2 times"),
    "too few images": (array(LATENTS, lambda values: values[:-2]), "has the shape (46, 4, 16, 16)"),
    "one half": (array(LATENTS, lambda values: values[:COUNT]), "has the shape (24, 4, 16, 16)"),
    "whole numbers": (array(LATENTS, lambda values: values.astype(np.int32)), "holds numbers of type int32"),
    "code in an array": (objects, "cannot be read as an array of numbers"),
    "other order": (array(LATENTS, lambda values: np.roll(values, 1, 0)), "does not hold the latents of these images"),
    "halves swapped": (array(LATENTS, lambda values: np.roll(values, COUNT, 0)), "does not hold the latents"),
    "unscaled": (array(LATENTS, lambda values: values * 2), "does not hold the latents of these images"),
    "not finite": (array(LATENTS, lambda values: np.where(values == values.max(), np.nan, values)), "not finite"),
    "four captions": (array(STATES, lambda values: values[:, :4]), "has the shape (24, 4, 16, 32)"),
    "captions in another order": (array(STATES, lambda values: np.roll(values, 1, 0)), "has other text states of"),
    "code in the model": (lambda place: torch.save({"a": Code()}, place / "model.bin"), "might run as code"),
    "a weight lacks": (tensors("model.bin", lambda found: dict(list(found.items())[1:])), "model.bin lacks 1 weights"),
    "a weight too many": (tensors("model.bin", lambda found: found | {"x": torch.ones(1)}), "has 1 tensors that are"),
    "another shape": (
        tensors("model.bin", lambda found: found | {"conv_in.bias": torch.ones(3)}), "conv_in.bias is (3,); that",
    ),
    "no number": (
        tensors("model.bin", lambda found: found | {"conv_in.bias": torch.full((8,), torch.nan)}),
        "conv_in.bias holds numbers that are not finite",
    ),
    "a list": (lambda place: torch.save([1], place / "model.bin"), "holds a list; a dictionary of tensors is expected"),
    "negative Fisher": (tensors("fisher_info.pt", negative), "is no diagonal Fisher information"),
    "Fisher of a part": (
        tensors("fisher_info.pt", lambda found: {"conv_in.bias": found["conv_in.bias"]}), "fisher_info.pt lacks",
    ),
    "an empty prompt": (lambda place: (place / "sample_caption.txt").write_text("disc\n\ndisc"), "has empty lines"),
    "a prompt lacks": (lambda place: (place / "sample_caption.txt").write_text("teal disc"), "has the shape (4, 4, 16"),
    "prompts in another order": (array(SAMPLE_STATES, lambda values: values[::-1]), "has other text states of"),
    "a picture lacks": (lambda place: (place / "sample" / "2.png").unlink(), "holds 3 pictures; those of 4"),
    "half a picture": (half_a_picture, "1.png is no picture that can be read"),
    "a large picture": (
        lambda place: Image.new("RGB", (64, 64)).save(place / "sample" / "0.png"), "has 64 × 64 pixels",
    ),
    "other pictures": (array(SAMPLES, lambda values: values[::-1]), "does not give the pictures"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_another_layout_ends_in_one_clear_report(home, release, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(release, tmp_path / "release")
    spoil, message = BAD[what]
    spoil(tmp_path / "release")
    result = prepared(home, tmp_path / "coco.toml", "--released", tmp_path / "release")
    assert result.exit_code == 2, result.output
    told = [line for line in result.output.splitlines() if line.startswith("bench: ")]
    assert len(told) == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "coco.toml").exists()
    assert not (tmp_path / "executed").exists()


def test_what_may_be_left_out_and_what_study_files_refuse(home, release, tmp_path):
    shutil.copytree(release, tmp_path / "release")
    (tmp_path / "release" / "fisher_info.pt").unlink()
    file = tmp_path / "coco.toml"
    assert prepared(home, file, "--released", tmp_path / "release").exit_code == 0
    assert study(str(file)).released.fisher is None
    text = file.read_text()
    for old, new, message in (
        ('weights = "given"', 'weights = "tuned"', "given or fresh is expected"),
        ("[released]\n", "[released]\nextra = 1\n", "extra"),
        ("preconditioned = false", f'preconditioned = false\npretrained = "{home / "sd"}"', "do not go together"),
    ):
        assert old in text
        file.write_text(text.replace(old, new))
        result = bench("plan", "--study", file, "--method", "pixel", "--queries", 1)
        assert (result.exit_code, message in " ".join(result.output.split())) == (2, True), result.output
    file.write_text(text)
    shutil.rmtree(tmp_path / "coco.released")
    result = bench("attribute", "--study", file, "--method", "random", "--prompt", "teal disc")
    assert result.exit_code == 2
    result = prepared(home, tmp_path / "other.toml", "--weights", "fresh")
    assert (result.exit_code, "give --released" in result.output) == (2, True), result.output
    few = own.coco(tmp_path / "few", COUNT, captions=(5, 3))
    shutil.copytree(home / "sd", few / "sd")
    result = prepared(few, tmp_path / "few.toml", "--released", release, "--all-captions")
    assert (result.exit_code, "some images have fewer" in " ".join(result.output.split())) == (2, True), result.output


def test_the_record_says_what_was_imported(home, release, tmp_path):
    assert prepared(home, tmp_path / "coco.toml", "--released", release).exit_code == 0
    facts = json.loads((tmp_path / "coco.released" / "index.json").read_text())["facts"]
    assert {"given", "all_captions", "prompts", "model", "fisher", "queries", "latents", "states"} == set(facts)
    made = study(str(tmp_path / "coco.toml"))
    assert made.parts["released"] == made.released.digest
    assert replace(made, released=None).digest != made.digest
