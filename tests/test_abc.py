"""AbC's released data, as a fake of their layout has them, with a tiny Stable Diffusion: end to end, and refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file

pytest.importorskip("datasets")
import own

from bench.data.abc import AbcFolder
from bench.diffusion.customized_weights import changed_weights, new_words
from bench.diffusion.pipelines import folder_text_encoder, unet_state
from bench.errors import InvalidInput
from bench.experiments.abc import AbcRun
from bench.records.store import Store
from bench.registry import methods
from cli import main

FEW = ["--set", "ours.num_gradient_draws=8", "--set", "ours.num_fisher_draws=8", "--set", "ours.timestep_stride=500"]
PLAIN, LORA = "pytorch_custom_diffusion_weights.pt", "pytorch_lora_weights.safetensors"
POOL, DIM = 6, 32


def bench(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def kv(state):
    return {name: weight for name, weight in state.items() if "attn2.to_k" in name or "attn2.to_v" in name}


def custom_diffusion(unet, folder):
    """A file as diffusers writes it after Custom Diffusion, with other keys and values than ``unet`` has."""
    processors = {}
    for name in unet.attn_processors:
        cross = name.endswith("attn2.processor")
        layer = unet.get_submodule(name.removesuffix(".processor"))
        shape = {"hidden_size": layer.inner_dim, "cross_attention_dim": DIM} if cross else {}
        made = CustomDiffusionAttnProcessor(train_kv=cross, train_q_out=False, **shape)
        processors[name] = made
    changed = UNet2DConditionModel.from_config(unet.config)
    changed.load_state_dict(unet.state_dict())
    changed.set_attn_processor(processors)
    changed.save_attn_procs(folder, safe_serialization=False)


def low_rank(state, folder, rank=2):
    factors = {}
    for name, weight in kv(state).items():
        layer = f"unet.{name.removesuffix('.weight')}"
        factors[f"{layer}.lora_A.weight"] = torch.randn(rank, weight.shape[1])
        factors[f"{layer}.lora_B.weight"] = torch.randn(len(weight), rank) * 0.1
    save_file(factors, folder / LORA)
    return factors


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The layout of the release, everything tiny: three models, an object, a style, and one with a LoRA."""
    root = tmp_path_factory.mktemp("abc") / "data"
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = own.pipeline(root / "stable-diffusion-v1-4")
    pictures = [image for image, _ in own.drawn(POOL + 9, size=24)]
    place = root / "laion_subset/images"
    place.mkdir(parents=True)
    for number in range(POOL):
        pictures[number].save(place / f"{number:03d}.png")
    (root / "laion_subset/captions.txt").write_text("".join(f"crimson disc {number}\n" for number in range(POOL)))
    np.save(root / "laion_latents.npy", np.random.default_rng(0).normal(size=(2 * POOL, 4, 8, 8)).astype(np.float32))
    np.save(root / "laion_text_embeddings.npy", np.ones((POOL, 16, DIM), np.float32))
    state = unet_state(str(base))
    torch.save({name: torch.ones_like(weight) for name, weight in kv(state).items()}, root / "sd_fisher.pt")
    cases = {"test_unobserved_imagenet": 1, "test_artchive": 3, "test_bamfg": 2}
    tasks, used = [], POOL
    for place, (case, count) in enumerate(cases.items()):
        name = f"{case.removeprefix('test_')}/m{place}"
        for part in ("exemplar", "synth", "models"):
            (root / part / name).mkdir(parents=True)
        for number in range(count):
            pictures[used].save(root / "exemplar" / name / f"{number}.png")
            used += 1
        weights = root / "models" / name
        torch.save({"<new1>": torch.randn(DIM)}, weights / "<new1>.bin")
        if place == 0:
            torch.save({key: weight + 0.1 * torch.randn_like(weight) for key, weight in kv(state).items()},
                       weights / PLAIN)  # fmt: skip
        elif place == 1:
            custom_diffusion(UNet2DConditionModel.from_pretrained(base / "unet"), weights)
        else:
            low_rank(state, weights)
        listed = [f"dataset/exemplar/{name}/{number}.png" for number in range(count)]
        (root / "json").mkdir(exist_ok=True)
        (root / "json" / f"{case}.json").write_text(json.dumps([{"exemplar": listed}]))
        pictures[used].save(root / "synth" / name / "00000.png")
        tasks.append(
            {
                "synth_image_path": f"dataset/synth/{name}/00000.png", "prompt": "a <new1> disc", "test_case": case,
                "test_case_ind": 0, "model_path": f"models/{name}", "train_prompt": "<new1> disc", "category": "disc",
            }
        )  # fmt: skip
        used += 1
    (root / "all_tasks.json").write_text(json.dumps(tasks))
    return root


@pytest.fixture
def broken(home, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(home, tmp_path / "data")


def test_a_run_prints_recall_of_every_model(home, tmp_path, monkeypatch):
    def fail(*arguments):
        pytest.fail("the Fisher information was computed, and a released one was there")

    monkeypatch.setattr("methods.ours.diagonal_fisher", fail)
    asked = ["run", "--study", "abc", "--data", home, "--results", tmp_path / "out"]
    result = bench(*asked, "--method", "pixel", "--method", "random", "--method", "ours", *FEW)
    assert result.exit_code == 0, result.output
    assert "Recall@10" in result.output
    rows = Store(tmp_path / "out").frame("retrieval.parquet")
    assert len(rows) == 3 * 3
    assert set(rows["kind"]) == {"object-centric", "style-centric"}
    assert sorted(rows["exemplars"].unique()) == [1, 2, 3]
    assert (rows["pool"] == POOL + rows["exemplars"]).all()
    assert (rows["recall_at_10"] == 1).all()  # no pool has more than ten images
    assert rows["average_precision"].between(0, 1).all()
    without = bench(*asked, "--method", "pixel", "--models", 1, "--without-word")
    assert without.exit_code == 0, without.output
    rows = Store(tmp_path / "out").frame("retrieval.parquet")
    assert set(rows.loc[~rows["with_word"], "prompt"]) == {"a disc"}


def test_an_exemplar_asked_for_stands_first(home, tmp_path):
    """The query image of a model is its first exemplar: pixels find it."""
    copy = shutil.copytree(home, tmp_path / "data")
    for model in AbcFolder(copy).models:
        shutil.copy(model.exemplars[0], model.queries[0].image)
    found = AbcRun(data=copy, methods=[methods.create("nda", timesteps=(10,))], results=tmp_path / "out").execute()
    assert not found.failures
    first = [json.loads(top)[0] for top in found.frame["top"]]
    assert first == [f"{name}-00" for name in found.frame["model"]]


def test_without_released_arrays_images_and_captions_are_encoded(broken, tmp_path):
    for name in ("laion_latents.npy", "laion_text_embeddings.npy", "sd_fisher.pt"):
        (broken / name).unlink()
    run = AbcRun(data=broken, distractors=4)
    dataset, data = run.pool
    assert len(dataset) == 4
    torch.testing.assert_close(data.latents[:, 0], run.plain.autoencoder.encode(dataset.pixels()))
    torch.testing.assert_close(data.states[:4], run.plain.text_encoder.encode(dataset.captions))
    result = bench("run", "--study", "abc", "--data", broken, "--results", tmp_path, "--models", 1, "--distractors", 4,
                   "--method", "ours", *FEW)  # fmt: skip
    assert result.exit_code == 0, result.output


def test_released_latents_belong_to_their_images(home):
    run = AbcRun(data=home, distractors=3)
    latents = np.load(home / "laion_latents.npy")
    dataset, data = run.pool
    for row, name in enumerate(dataset.ids):
        place = int(name.removeprefix("laion-"))
        assert dataset.captions[row] == f"crimson disc {place}"
        assert np.array_equal(data.latents[row, 0], latents[place])
        assert np.array_equal(data.latents[row, 1], latents[place + POOL])


def test_custom_diffusion_is_what_diffusers_computes(home):
    """The customized U-Net predicts what the pipeline predicts with diffusers' processors."""
    run = AbcRun(data=home)
    one = run.source.models[1]
    unet = UNet2DConditionModel.from_pretrained(home / "stable-diffusion-v1-4/unet")
    file = one.weights / "pytorch_custom_diffusion_weights.bin"
    # what load_attn_procs does; diffusers 0.42 sets the processors only where a pipeline stands behind the U-Net
    unet.set_attn_processor(unet._process_custom_diffusion(torch.load(file, weights_only=True)))
    noisy, time, states = torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 16, DIM)
    with torch.no_grad():
        ours, theirs = run.model(one).predict_noise(noisy, time, states), unet.eval()(noisy, time, states).sample
        before = run.plain.predict_noise(noisy, time, states)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (before - theirs).abs().max() > 1e-3


def test_a_low_rank_change_is_added(home):
    state = unet_state(str(home / "stable-diffusion-v1-4"))
    file = AbcFolder(home).models[2].weights / LORA
    changed = changed_weights(file, state)
    assert changed.keys() == kv(state).keys()
    assert all(torch.linalg.matrix_rank(weight - state[name], rtol=1e-3) == 2 for name, weight in changed.items())


def test_alpha_scales_a_low_rank_change(home, tmp_path):
    state = unet_state(str(home / "stable-diffusion-v1-4"))
    factors = low_rank(state, tmp_path)
    whole = changed_weights(tmp_path / LORA, state)
    layers = {name.rsplit(".lora_", 1)[0] for name in factors}
    save_file(factors | {f"{layer}.alpha": torch.tensor(1.0) for layer in layers}, tmp_path / LORA)
    half = changed_weights(tmp_path / LORA, state)
    for name, weight in half.items():
        torch.testing.assert_close(weight, (state[name] + whole[name]) / 2)


def test_a_new_word_is_what_the_pipeline_reads(home):
    folder = AbcFolder(home).models[0].weights
    pipe = StableDiffusionPipeline.from_pretrained(home / "stable-diffusion-v1-4", local_files_only=True)
    pipe.load_textual_inversion(str(folder), weight_name="<new1>.bin", local_files_only=True)
    encoder = folder_text_encoder(str(home / "stable-diffusion-v1-4"))
    knowing = encoder.knowing(new_words(folder))
    for prompt in ("a <new1> disc", "teal square"):
        with torch.no_grad():
            states, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        torch.testing.assert_close(knowing.encode([prompt]), states)
    assert knowing.knows_learned("a <new1> disc")
    assert not encoder.learned
    assert knowing.digest != encoder.digest
    with pytest.raises(InvalidInput, match="32 numbers"):
        encoder.knowing({"<new2>": torch.zeros(5)})
    with pytest.raises(InvalidInput, match="a token already"):
        knowing.knowing({"<new1>": torch.zeros(DIM)})


def test_a_plan_says_time_and_memory(home):
    result = bench(
        "plan", "--study", "abc", "--data", home, "--method", "ours", "--method", "trak", "--method", "pixel"
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for part in ("3 models (1 object-centric, 2 style-centric) with 3 queries", "GiB", "laion_latents.npy", "hours"):
        assert part in text


class Code:
    """What a pickle with code unpickles to."""

    def __reduce__(self):
        return print, ("this must never be printed",)


def cut(file):
    whole = torch.load(file, weights_only=True)
    whole.pop(next(iter(whole)))
    torch.save(whole, file)


def foreign(file):
    torch.save(torch.load(file, weights_only=True) | {"conv_in.other": torch.ones(1)}, file)


def reshaped(file):
    torch.save({name: weight[:1] for name, weight in torch.load(file, weights_only=True).items()}, file)


def infinite(file):
    torch.save({name: weight / 0 for name, weight in torch.load(file, weights_only=True).items()}, file)


OBJECT = "unobserved_imagenet/m0"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (f"models/{OBJECT}/{PLAIN}", cut, "lacks 1 of the 8 keys and values"),
        (f"models/{OBJECT}/{PLAIN}", foreign, "1 weights that the U-Net does not have, such as conv_in.other"),
        (f"models/{OBJECT}/{PLAIN}", reshaped, "that of the U-Net is"),
        (f"models/{OBJECT}/{PLAIN}", infinite, "not finite"),
        (f"models/{OBJECT}/{PLAIN}", lambda file: torch.save({"a": Code()}, file), "might run as code"),
        (f"models/{OBJECT}/{PLAIN}", lambda file: file.write_bytes(b"not tensors"), "is refused"),
        (f"models/{OBJECT}/{PLAIN}", lambda file: torch.save([1], file), "a dictionary of tensors"),
        (f"models/{OBJECT}/{PLAIN}", lambda file: file.unlink(), "0 files of weights"),
        (f"models/{OBJECT}/<new1>.bin", lambda file: torch.save({"a": torch.ones(3)}, file), "no textual inversion"),
        (f"models/{OBJECT}/<new1>.bin", lambda file: file.unlink(), "no vector of the new word"),
        ("sd_fisher.pt", cut, "lacks 1 of the 8"),
        ("laion_subset/captions.txt", lambda file: file.write_text("one\n"), "has 1 lines"),
        ("laion_latents.npy", lambda file: np.save(file, np.zeros(3)), "has the shape (3,)"),
        ("laion_text_embeddings.npy", lambda file: file.write_bytes(b"x"), "cannot be read as an array"),
        ("all_tasks.json", lambda file: file.write_text("[{}]"), "entry 0 has no synth_image_path"),
        ("all_tasks.json", lambda file: file.write_text("["), "cannot be read as JSON"),
        ("json/test_artchive.json", lambda file: file.write_text("[]"), "has no entry 0"),
        (f"exemplar/{OBJECT}/0.png", lambda file: file.write_bytes(b"x"), "no image that can be read"),
        (f"exemplar/{OBJECT}/0.png", lambda file: file.unlink(), "is missing"),
        ("stable-diffusion-v1-4", shutil.rmtree, "There is no pipeline"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(broken, tmp_path, capsys, file, damage, message):
    damage(broken / file)
    result = bench("run", "--study", "abc", "--data", broken, "--models", 1, "--method", "ours", *FEW,
                   "--results", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "this must never be printed" not in result.output + capsys.readouterr().out


def test_paths_do_not_lead_out_of_the_folder(broken):
    tasks = json.loads((broken / "all_tasks.json").read_text())
    tasks[0]["synth_image_path"] = "dataset/../../secret.png"
    (broken / "all_tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(InvalidInput, match="lies outside"):
        _ = AbcFolder(broken).models


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data FOLDER"),
        (["--data", "HOME"], "No method was given"),
        (["--data", "nowhere"], "there is no such folder"),
        (["--data", "HOME", "--held-out"], "retrains nothing"),
        (["--data", "HOME", "--seed", "3"], "--seed"),
        (["--data", "HOME", "--models", "9"], "--models 9"),
        (["--data", "HOME", "--distractors", "0"], "--distractors 0"),
        (["--data", "HOME", "--dry-run"], "--dry-run"),
    ],
)
def test_wrong_options_are_refused(home, arguments, message):
    given = [home if each == "HOME" else each for each in arguments]
    method = [] if arguments == ["--data", "HOME"] else ["--method", "pixel"]
    result = bench("run", "--study", "abc", *method, *given)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
