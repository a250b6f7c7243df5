"""Images with several captions: which one a draw of training has, and what a loss and a gradient make of them all."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("datasets")
import own

from bench.attribution.fisher import diagonal_fisher
from bench.attribution.influence import image_rows
from bench.data import encoded
from bench.diffusion.losses import image_loss_maps, image_noise, training_set_losses
from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import DrawStream, TrainingData, TrainingJob, TrainingRun
from bench.errors import InvalidInput
from bench.foundation import seeds
from bench.studies import study
from cli import main

WORDS = ("a photo of a bag", "a photo of a coat", "a photo of a dress", "a photo of a shirt")


@pytest.fixture(scope="module")
def several(tiny):
    """The tiny data set; image i has i mod 4 further captions."""
    return replace(tiny.dataset, more_captions=tuple(WORDS[: i % 4] for i in range(len(tiny.dataset))))


@pytest.fixture(scope="module")
def spoken(tiny, several):
    return TrainingData.of(several, DiffusionModel(tiny.model))


@pytest.fixture
def context(context, spoken, several):
    """The context of the tiny study with these captions; its model was trained with the first ones."""
    return replace(context, data=spoken, dataset=several)


def texts_of(several, image):
    return [several.captions[image], *several.more_captions[image]]


def test_further_captions_are_another_data_set_and_the_first_are_as_before(tiny, several):
    whole = tiny.dataset
    assert several.digest != whole.digest
    assert replace(several, more_captions=()).digest == whole.digest
    assert several.only([3, 1]).more_captions == (WORDS[:3], WORDS[:1])
    plain = replace(several, ids=tuple(f"x{each}" for each in several.ids), more_captions=())
    joined = several.and_then(plain)
    assert joined.more_captions == several.more_captions + ((),) * len(plain)


def test_every_caption_of_an_image_has_its_state(tiny, several, spoken, tmp_path):
    model = DiffusionModel(tiny.model)
    kept = TrainingData.kept(tmp_path / "encoded", several, model)
    for found in (spoken, kept):
        for image in (0, 1, 2, 3, 50):
            texts = texts_of(several, image)
            same = torch.full((len(texts),), image)
            rows = found.caption_rows(same, torch.arange(len(texts)))
            assert torch.equal(found.states_at(rows), model.text_encoder.encode(texts))
        assert found.num_captions(torch.arange(8)).tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
        assert found.more_of[4].tolist() == [-1, -1, -1]
    encoded.check(tmp_path / "encoded")
    (tmp_path / "encoded" / "more_of.npy").write_bytes(b"")
    with pytest.raises(encoded.DamagedArtifact, match="more_of"):
        encoded.opened(tmp_path / "encoded")


def test_a_draw_has_each_caption_of_its_image_equally_often(tiny, several, spoken):
    """… keyed by seed and step, whatever is removed; all other draws are those of a data set with one caption."""
    model, recipe = DiffusionModel(tiny.model), replace(tiny.recipe, batch_size=512, caption_dropout=0.25)
    stream = DrawStream(TrainingJob((), 1), len(spoken), model, recipe)
    counts = torch.zeros(4, 4)
    for step in range(20):
        draws = stream.at(step)
        having = spoken.num_captions(draws.images)
        numbers = (draws.captions * having).long()
        for total in range(1, 5):
            counts[total - 1] += torch.bincount(numbers[having == total], minlength=4)
        rows = spoken.trained_rows(draws)
        assert torch.equal(rows == spoken.empty_state, draws.captionless)
        assert torch.equal(rows[~draws.captionless], spoken.caption_rows(draws.images, numbers)[~draws.captionless])
    for total in range(1, 5):
        share = counts[total - 1] / counts[total - 1].sum()
        assert share[total:].sum() == 0
        assert (share[:total] - 1 / total).abs().max() < 0.035  # 2,560 draws: 3.5 standard deviations
    without = DrawStream(TrainingJob((3, 7), 1), len(spoken), model, recipe).at(5)
    whole, others = stream.at(5), stream.at(6)
    kept = whole.images == without.images
    assert 0.9 < kept.double().mean() < 1
    assert torch.equal(spoken.trained_rows(whole)[kept], spoken.trained_rows(without)[kept])
    assert not torch.equal(whole.captions, others.captions)
    assert not torch.equal(whole.captions, DrawStream(TrainingJob((), 2), len(spoken), model, recipe).at(5).captions)


def test_training_reads_the_drawn_captions(tiny, spoken):
    """A step from data with several captions is the step from data whose only caption is the drawn one."""
    recipe = replace(tiny.recipe, batch_size=4, num_steps=2)

    def run(given):
        return TrainingRun(tiny.model, given, recipe, TrainingJob((), 0), device=torch.device("cpu"))

    whole, first = run(spoken), run(replace(spoken, more_of=None))
    draws = whole.draws.at(0)
    assert len(set(draws.images.tolist())) == 4
    chosen = spoken.caption_of.clone()
    chosen[draws.images] = spoken.drawn_rows(draws.images, draws.captions)
    assert not torch.equal(chosen, spoken.caption_of)
    alone = run(replace(spoken, caption_of=chosen, more_of=None))
    for each in (whole, alone, first):  # a model that was not trained does not hear the prompt
        with torch.no_grad():
            each.weights.copy_(seeds.normal(tuple(each.weights.shape), "weights") / 10)
    losses = [each.advance() for each in (whole, alone, first)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(whole.weights, alone.weights)


def test_a_loss_is_the_mean_over_captions(tiny, several, spoken, model):
    ids, times = several.ids, [100, 600]
    found = training_set_losses(model, [model.unet], spoken, ids, times, seed=0)[0]
    first = training_set_losses(model, [model.unet], replace(spoken, more_of=None), ids, times, seed=0)[0]
    torch.testing.assert_close(found[::4], first[::4])  # those with one caption
    for image in (2, 7):
        texts, losses = texts_of(several, image), []
        for number, text in enumerate(texts):
            noise = image_noise(model, ids[image], times, 0, number)
            latents = spoken.latents[image].unsqueeze(1).expand_as(noise).flatten(0, 1)
            states = model.text_encoder.encode([text]).expand(4, -1, -1)
            with torch.no_grad():
                losses.append(model.losses(latents, states, torch.tensor(times * 2), noise.flatten(0, 1)).view(2, 2))
        torch.testing.assert_close(found[image], torch.stack(losses).mean(0))
        assert not torch.allclose(losses[0], losses[1])  # its own noise
        maps = image_loss_maps(model, model.unet, spoken, [image], ids, times, seed=0)
        torch.testing.assert_close(maps[0].mean((1, 2)), found[image].mean(1))


def test_gradients_take_the_captions_in_turn_or_by_draw(spoken, model, context):
    rows = image_rows(context, model, 6)(2 * 3)
    texts = texts_of(context.dataset, 3)
    expected = model.text_encoder.encode([texts[k % 4] for k in range(6)])
    assert torch.equal(rows.states, expected)
    several = diagonal_fisher(context, "cross-attn-kv", 32)
    first = diagonal_fisher(replace(context, data=replace(spoken, more_of=None)), "cross-attn-kv", 32)
    again = diagonal_fisher(context, "cross-attn-kv", 32)
    assert all(torch.equal(several[name], again[name]) for name in several)
    assert any(not torch.allclose(several[name], first[name]) for name in several)


def test_lists_of_captions_are_read_where_they_are_asked_for(tmp_path):
    rows = [
        {"image": {"bytes": own.png(image), "path": None}, "captions": [caption, "", f"number {number}"]}
        for number, (image, caption) in enumerate(own.drawn(6))
    ]
    (tmp_path / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table" / "part.parquet")
    found = {}
    for name, more in (("first", []), ("all", ["--all-captions"])):
        asked = ["study", "new", tmp_path / f"{name}.toml", "--data", tmp_path / "table", *more]
        result = CliRunner().invoke(main, [str(each) for each in asked], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found[name] = study(str(tmp_path / f"{name}.toml")).dataset
    assert found["first"].captions == found["all"].captions
    assert found["first"].more_captions == ()
    assert found["all"].more_captions == tuple((f"number {number}",) for number in range(6))
    assert found["first"].digest != found["all"].digest


def test_a_new_word_wants_one_caption(tiny, spoken, several):
    model = DiffusionModel(tiny.model)
    model.text_encoder = model.text_encoder.with_words({"bag": torch.zeros(model.text_encoder.dim)})
    with pytest.raises(InvalidInput, match="one caption each"):
        spoken.as_read_by(model, several.captions)
