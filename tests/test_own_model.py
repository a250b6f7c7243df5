"""A user's own Stable Diffusion as the model of a study, and what is refused of data, study files and models."""

import json
import shutil
import warnings
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

pytest.importorskip("datasets")
import own

from bench.diffusion import pipelines
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.pipelines import PREFIX, FolderAutoencoder, pipeline_settings, unet_digest, unet_state
from bench.diffusion.selections import select_weights
from bench.studies import study
from cli import main

QUICK = [
    "--set", "ours.num_fisher_draws=16", "--set", "ours.num_gradient_draws=16", "--set", "ours.timestep_stride=500",
]  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


def bench(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with pictures and a pipeline, sound ones, to be copied."""
    place = tmp_path_factory.mktemp("home")
    own.image_folder(place / "pictures", 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.pipeline(place / "model")
    return place


@pytest.fixture(scope="module")
def settings(home):
    return pipeline_settings(home / "model")


def own_study(home, name, weights, size=16):
    """A study of the pictures with the pipeline, with a recipe of seconds."""
    file = home / f"{name}.toml"
    asked = ["study", "new", file, "--data", home / "pictures", "--model", home / "model", "--weights", weights]
    result = bench(*asked, "--size", size)
    assert result.exit_code == 0, result.output
    return own.edited(file, ("num_steps = 1000", "num_steps = 6"), ("num_steps = 50", "num_steps = 3"))


def test_a_given_model_is_attributed_without_any_training(home, monkeypatch):
    file = own_study(home, "given", "given")
    monkeypatch.setattr(
        "bench.diffusion.training.TrainingRun.advance", lambda *arguments: pytest.fail("something was trained")
    )
    results = ["--results", home / "given-results"]
    asked = ["--method", "ours", "--prompt", "teal disc", "--top", 3, *QUICK, *results]
    result = bench("attribute", "--study", file, *asked)
    assert result.exit_code == 0, result.output
    assert "teal" in result.output
    refused = bench("run", "--study", file, "--method", "pixel", "--queries", 1, *results)
    assert refused.exit_code == 2
    assert "how it was trained is not known" in refused.output
    assert bench("reference", "--study", file, "--models", 1, "--k", 2, "--queries", 1, *results).exit_code == 2


@pytest.mark.parametrize("weights", ["fresh", "fine-tune"])
def test_a_run_with_the_users_model(home, weights):
    file = own_study(home, weights, weights)
    asked = ["--method", "ours", "--queries", 1, "--k", 2, "--floor", "random", *QUICK]
    result = bench("run", "--study", file, *asked, "--results", home / f"{weights}-results")
    assert result.exit_code == 0, result.output
    assert "loss_change" in result.output
    made = study(str(file))
    assert (made.fine_tuning is not None) == (weights == "fine-tune")


def test_a_pipeline_on_the_hub_is_a_folder_that_is_fetched(home, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "someone/model":
            raise OSError("there is no such repository")
        return str(home / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pipelines._fetched.cache_clear()
    file = tmp_path / "hubbed.toml"
    result = bench("study", "new", file, "--data", home / "pictures", "--model", "hub:someone/model")
    assert result.exit_code == 0, result.output
    assert 'pretrained = "hub:someone/model"' in file.read_text()
    given = tmp_path / "given.toml"
    assert bench("study", "new", given, "--data", home / "pictures", "--model", home / "model").exit_code == 0
    assert study(str(file)).digest == study(str(given)).digest
    [(_, patterns)] = asked  # once
    there = [path.relative_to(home / "model").as_posix() for path in (home / "model").rglob("*") if path.is_file()]
    kept = {name for name in there if any(fnmatch(name, pattern) for pattern in patterns)}
    assert set(there) - kept <= {"README.md"}
    refused(bench("study", "new", tmp_path / "none.toml", "--data", home / "pictures", "--model", "hub:a/b"), "hub")
    pipelines._fetched.cache_clear()


def test_fine_tuning_begins_with_the_pipelines_weights(home):
    file = own_study(home, "begins", "fine-tune")
    how = study(str(file)).fine_tuning
    begun = how.begin(DiffusionModel(study(str(file)).model)).state()
    given = unet_state(str(home / "model"))
    assert all(torch.equal(begun[name], weight) for name, weight in given.items())


def test_parts_are_those_of_the_pipeline(home, settings):
    """Latents, text states, noise schedule and noise prediction are what diffusers' own pipeline computes."""
    pipe = StableDiffusionPipeline.from_pretrained(home / "model", local_files_only=True)
    model = DiffusionModel(ModelConfig(**settings)).load(unet_state(str(home / "model")))
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        states, _ = pipe.encode_prompt("teal disc", "cpu", 1, do_classifier_free_guidance=False)
        torch.testing.assert_close(model.autoencoder.encode(pixels), latents)
        torch.testing.assert_close(
            model.autoencoder.decode(latents), pipe.vae.decode(latents / 0.5).sample.clamp(-1, 1)
        )
        torch.testing.assert_close(model.text_encoder.encode(["teal disc"]), states)
        torch.testing.assert_close(model.alphas_cumprod, pipe.scheduler.alphas_cumprod)
        times, noisy = torch.tensor([400, 900]), torch.randn(2, 4, 8, 8)
        expected = pipe.unet(noisy, times, states.expand(2, -1, -1)).sample
        torch.testing.assert_close(model.predict_noise(noisy, times, states.expand(2, -1, -1)), expected)
    assert len(select_weights(model.unet, "cross-attn-kv")) == 2 * 4  # of one layer down, one in the middle, two up
    assert model.clip_range == 0


def test_v_prediction_is_noise_prediction_with_other_words(home, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = own.pipeline(tmp_path / "v", scheduler={"prediction_type": "v_prediction"})
    model = DiffusionModel(ModelConfig(**pipeline_settings(place))).load(unet_state(str(place)))
    scheduler = DDIMScheduler.from_pretrained(place, subfolder="scheduler")
    scheduler.set_timesteps(10)
    timestep, noisy = scheduler.timesteps[3], torch.randn(1, 4, 8, 8)
    states = model.text_encoder.encode(["teal disc"])
    with torch.no_grad():
        output = model.unet(noisy, timestep, states).sample
        clean = scheduler.step(output, timestep, noisy).pred_original_sample
        found = model.predict_noise(noisy, timestep[None], states)
    alpha = scheduler.alphas_cumprod[timestep]
    torch.testing.assert_close(found, (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt(), atol=1e-5, rtol=1e-4)


def test_digests_are_of_tensors_not_of_names(home, tmp_path):
    other = tmp_path / "another-name"
    shutil.copytree(home / "model", other)
    pairs = [(unet_digest(str(place)), FolderAutoencoder(place).digest) for place in (home / "model", other)]
    assert pairs[0] == pairs[1]
    for part in ("unet", "vae"):
        weights = load_file(other / part / WEIGHTS)
        weights["conv_in.bias" if part == "unet" else "quant_conv.bias"][0] += 1
        save_file(weights, other / part / WEIGHTS)
    unet_state.cache_clear()
    unet_digest.cache_clear()
    assert unet_digest(str(other)) != pairs[0][0]
    assert FolderAutoencoder(other).digest != pairs[0][1]


def test_a_clip_encoder_alone_serves_a_small_unet(home):
    """[model] may name the text encoder of a folder, beside a U-Net on pixels."""
    file = home / "clip.toml"
    assert bench("study", "new", file, "--data", home / "pictures").exit_code == 0
    lines = file.read_text().splitlines()
    words = next(number for number, line in enumerate(lines) if line.startswith("text_encoder"))
    lines[words : words + 2] = [f'text_encoder = "{PREFIX}model"', "num_tokens = 16"]
    file.write_text("\n".join(lines))
    model = DiffusionModel(study(str(file)).model)
    assert model.unet.config["cross_attention_dim"] == 32
    assert model.text_encoder.encode(["teal"]).shape == (1, 16, 32)


def edited(path: Path, **changes):
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, **changes}))


def lines_of(place: Path, change):
    file = place / "metadata.jsonl"
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


def table(place: Path, **columns):
    shutil.rmtree(place)
    place.mkdir()
    pq.write_table(pa.table(columns), place / "a.parquet")


def thinned(place: Path):
    lines_of(place, lambda lines: lines[:2])
    for path in sorted(place.glob("*.png"))[2:]:
        path.unlink()


def all_files(place: Path, content: bytes):
    for path in place.glob("*.png"):
        path.write_bytes(content)


def poisoned(place: Path):
    weights = load_file(place / "unet" / WEIGHTS)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, place / "unet" / WEIGHTS)


def robbed(place: Path):
    weights = load_file(place / "unet" / WEIGHTS)
    del weights["conv_in.bias"]
    save_file(weights, place / "unet" / WEIGHTS)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:5000])


BAD_DATA = {
    "nothing there": (shutil.rmtree, "There is no folder or file"),
    "an empty folder": (lambda p: [path.unlink() for path in p.iterdir()], "holds no data that can be read"),
    "no pictures": (lambda p: [path.unlink() for path in p.glob("*.png")], "holds no data that can be read"),
    "two formats": (lambda p: (p / "a.tar").write_bytes(b""), "several formats: give --format"),
    "metadata that is no JSON": (lambda p: lines_of(p, lambda lines: ["{", *lines]), "cannot be read as imagefolder"),
    "metadata without file names": (
        lambda p: lines_of(p, lambda lines: ['{"text": "a"}']), "cannot be read as imagefolder",
    ),
    "metadata further below": (
        lambda p: ((p / "sub").mkdir(), shutil.move(p / "metadata.jsonl", p / "sub")), "lies below",
    ),
    "no picture can be read": (lambda p: all_files(p, b"x"), "24 of 24 examples"),
    "a caption that lacks": (lambda p: lines_of(p, lambda lines: lines[:-1]), "(not in the metadata) has no caption"),
    "an id twice": (lambda p: lines_of(p, lambda lines: [*lines, lines[0]]), "has an id that came before"),
    "no tar": (
        lambda p: (shutil.rmtree(p), p.mkdir(), (p / "a.tar").write_bytes(b"x" * 600)), "is no tar file",
    ),
    "a table without pictures": (lambda p: table(p, text=["a", "b"]), "no column of images was found among text"),
    "a table that is none": (
        lambda p: (table(p, text=["a"]), (p / "a.parquet").write_bytes(b"PAR1 nothing")), "cannot be read as parquet",
    ),
    "too few pictures": (thinned, "takes 4"),
    "a table with empty pictures": (
        lambda p: table(p, image=pa.array([None, None], pa.binary()), text=["a", "b"]), "2 has no image",
    ),
}  # fmt: skip
BAD_MODELS = {
    "nothing there": (shutil.rmtree, "is no pipeline folder of diffusers"),
    "another pipeline": (
        lambda p: edited(p / "model_index.json", _class_name="FluxPipeline"), "a StableDiffusionPipeline is expected",
    ),
    "no U-Net": (lambda p: shutil.rmtree(p / "unet"), "has no U-Net"),
    "no weights": (lambda p: (p / "vae" / WEIGHTS).unlink(), "holds no weights"),
    "weights that are cut": (lambda p: cut(p / "unet" / WEIGHTS), "The U-Net in"),
    "weights that lack": (robbed, "lacks 1 of its weights, such as conv_in.bias"),
    "weights that are pointers": (
        lambda p: (p / "vae" / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull",
    ),
    "weights that are no numbers": (poisoned, "no finite numbers: conv_in.bias"),
    "a U-Net for inpainting": (lambda p: edited(p / "unet" / "config.json", in_channels=9), "takes 9 channels"),
    "a U-Net of SDXL": (
        lambda p: edited(p / "unet" / "config.json", addition_embed_type="text_time"), "asks for more than a prompt",
    ),
    "another text encoder": (
        lambda p: edited(p / "unet" / "config.json", cross_attention_dim=768), "attends to states of 768 numbers",
    ),
    "no tokenizer": (lambda p: shutil.rmtree(p / "tokenizer"), "holds no tokenizer"),
    "a schedule that ends in noise alone": (
        lambda p: edited(p / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True), "ends in noise alone",
    ),
    "an unknown schedule": (
        lambda p: edited(p / "scheduler" / "scheduler_config.json", beta_schedule="squaredcos_cap_v2"),
        "linear or scaled_linear is expected",
    ),
    "a prediction of the image": (
        lambda p: edited(p / "scheduler" / "scheduler_config.json", prediction_type="sample"), "predicts 'sample'",
    ),
    "a configuration that is no JSON": (
        lambda p: (p / "unet" / "config.json").write_text("{"), "cannot be read as JSON",
    ),
}  # fmt: skip
BAD_FILES = {
    "no TOML": (lambda text: text + "\n[", "cannot be read as TOML"),
    "no source": (lambda text: text.replace('source = "pictures"\n', ""), "[data] of"),
    "an unknown setting": (lambda text: text.replace("[recipe]", "[recipe]\nlearning_rat = 1.0"), "'learning_rat'"),
    "a text for a number": (lambda text: text.replace("batch_size = 32", 'batch_size = "32"'), "a whole number is"),
    "a recipe that cannot be": (lambda text: text.replace("num_shards = 1", "num_shards = 5"), "divisible by"),
    "budgets out of order": (lambda text: text.replace("budgets = [1, 2, 6]", "budgets = [6, 2]"), "budgets = [6, 2]"),
    "more queries than there are": (lambda text: text.replace("num_queries = 8", "num_queries = 99"), "16 [[queries]]"),
    "a name that is taken": (lambda text: text.replace('"sound"', '"faces"'), "cannot be called 'faces'"),
    "a size that does not fit": (lambda text: text.replace("size = 16", "size = 18", 1).replace(
        "[model]", "[model]\nsample_size = 16"), "sample_size is 16"),
    "an unknown text encoder": (lambda text: text.replace('"hashed"', '"hash"'), "no text encoder 'hash'"),
    "a query twice": (lambda text: text + '\n[[held_out]]\nprompt = "a"\nseed = 5\n' * 2, "more than once"),
    "fine-tuning of nothing": (lambda text: text + "\n[fine_tuning]\nrank = 2\n", "needs pretrained = FOLDER"),
    "a change of the data": (lambda text: text.replace('digest = "', 'digest = "0'), "have changed"),
    "an unknown metric": (lambda text: text.replace('"loss_change"', '"los_change"'), "no metric 'los_change'"),
}  # fmt: skip


def refused(result, message):
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("bench: ")]
    assert message in line


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data_end_in_one_clear_report(home, tmp_path, what):
    spoil, message = BAD_DATA[what]
    place = tmp_path / "pictures"
    shutil.copytree(home / "pictures", place)
    spoil(place)
    refused(bench("study", "new", tmp_path / "bad.toml", "--data", place), message)
    assert not (tmp_path / "bad.toml").exists()


@pytest.mark.parametrize("what", BAD_MODELS)
def test_bad_models_end_in_one_clear_report(home, tmp_path, what):
    spoil, message = BAD_MODELS[what]
    place = tmp_path / "model"
    shutil.copytree(home / "model", place)
    spoil(place)
    refused(bench("study", "new", tmp_path / "bad.toml", "--data", home / "pictures", "--model", place), message)
    assert not (tmp_path / "bad.toml").exists()


@pytest.fixture(scope="module")
def sound(home):
    """A study file to be spoilt."""
    file = home / "sound.toml"
    assert bench("study", "new", file, "--data", home / "pictures").exit_code == 0
    file.write_text(file.read_text().replace("num_steps = 1000", "num_steps = 2"))
    return file


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_study_files_end_in_one_clear_report(sound, what):
    spoil, message = BAD_FILES[what]
    text = spoil(sound.read_text())
    assert text != sound.read_text()
    bad = sound.with_name("bad.toml")
    bad.write_text(text)
    results = sound.parent / "bad-results"
    refused(bench("run", "--study", bad, "--method", "pixel", "--queries", 1, "--results", results), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["faces.toml"], "cannot be called 'faces'"),
        (["My Study.toml"], "cannot be called 'My Study'"),
        (["mine.json"], "ends in .toml"),
        (["sound.toml"], "is there already"),
        (["a.toml", "--size", "15"], "a multiple of 2"),
        (["a.toml", "--size", "9000"], "8 to 1024"),
        (["a.toml", "--caption-column", "words"], "no column 'words' for the captions"),
        (["a.toml", "--format", "zip"], "data format 'zip' is unknown"),
    ],
)
def test_what_study_new_refuses(sound, arguments, message):
    file, *rest = arguments
    refused(bench("study", "new", sound.with_name(file), "--data", sound.with_name("pictures"), *rest), message)
