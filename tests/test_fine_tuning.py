"""Fine-tuning is a training like any other: paired, resumable, independent of threads; only what is named moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.data.dataset import Dataset
from bench.diffusion.fine_tuning import FineTuning, Start, Tuning
from bench.diffusion.model import LEARNED, DiffusionModel
from bench.diffusion.selections import WEIGHT_SELECTIONS, select_weights
from bench.diffusion.training import DrawStream, Recipe, TrainingData, TrainingJob, TrainingRun, train_together
from bench.errors import InvalidInput, UnknownName, UnknownWord
from bench.experiments.leave_k_out import Run
from bench.foundation.machine import compute_threads
from bench.records.store import Store
from bench.registry import methods
from bench.retraining.ledger import Ledger
from bench.studies import study

CPU = torch.device("cpu")
NOTHING = TrainingJob((), 0)
RECIPE = Recipe(num_steps=4, batch_size=8, learning_rate=1e-2, num_shards=2, caption_dropout=0.2)
EXEMPLARS = ("own-0", "own-1")


@pytest.fixture(scope="module")
def dataset(tiny):
    """The images of tiny, and two exemplars with the new word in their captions."""
    base = tiny.dataset
    return Dataset(
        name="tuned",
        ids=(*base.ids, *EXEMPLARS),
        captions=(*base.captions, "a photo of Vx*", "Vx* bag"),
        concepts=(*base.concepts, "vx", "vx"),
        styles=(*base.styles, "", ""),
        images=torch.cat([base.images, 255 - base.images[:2]]),
    )


@pytest.fixture(scope="module")
def start(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_file(model.state(), file)
    return Start.of_file(file)


@pytest.fixture(scope="module")
def how(start):
    return FineTuning(start=start, word="vx", word_rate=5.0, exemplars=EXEMPLARS)


def run_of(tiny, dataset, how, job=NOTHING, recipe=RECIPE):
    data = TrainingData.of(dataset, how.with_word(DiffusionModel(tiny.model)))
    return TrainingRun(tiny.model, data, recipe, job, device=CPU, tuning=Tuning.on(how, dataset))


def trained(*given, **more):
    run = run_of(*given, **more)
    for _ in train_together([run]):
        pass
    return run.trained_state()


@pytest.mark.parametrize("weights", WEIGHT_SELECTIONS)
@pytest.mark.parametrize("rank", [0, 2])
def test_only_the_named_weights_move(tiny, dataset, how, model, weights, rank):
    state = trained(tiny, dataset, replace(how, weights=weights, rank=rank))
    named = select_weights(model.unet, weights)
    moved = {name for name, weight in model.state().items() if not torch.equal(weight, state[name])}
    wanted = {name for name, weight in named.items() if not rank or weight.ndim > 1}
    assert moved == wanted
    if rank:
        for name in wanted:
            singular = torch.linalg.svdvals((state[name] - model.state()[name]).flatten(1))
            assert (singular[rank:] < 1e-4 * singular[0] + 1e-7).all()
    word = state[f"{LEARNED}vx"]
    assert not torch.equal(word, how.with_word(DiffusionModel(tiny.model)).text_encoder.learned["vx"])


def test_the_first_gradient_of_the_word_is_that_of_the_loss(tiny, dataset, how):
    run = run_of(tiny, dataset, replace(how, weights="cross-attn"), recipe=replace(RECIPE, weight_power=0.5))
    draws = run.draws.at(0)
    run._backward(draws, 0)
    part = slice(0, RECIPE.batch_size // 2)
    model = how.begin(DiffusionModel(tiny.model))
    word = model.text_encoder.learned["vx"].clone().requires_grad_(True)
    encoder = model.text_encoder.with_words({"vx": word})
    captions = [
        "" if empty else dataset.captions[image]
        for image, empty in zip(draws.images[part].tolist(), draws.captionless[part].tolist(), strict=True)
    ]
    latents = run.data.latents[draws.images[part], draws.mirrored[part]]
    losses = model.losses(latents, encoder.encode(captions), draws.timesteps[part], draws.noise[part])
    (losses * model.alphas_cumprod[draws.timesteps[part]].pow(-0.5)).mean().backward()
    found = run.replicas[0].word.grad / how.word_rate
    assert word.grad.norm() > 0
    torch.testing.assert_close(found, word.grad, rtol=1e-3, atol=1e-6)


def test_a_trained_state_brings_its_word_along(tiny, dataset, how):
    state = trained(tiny, dataset, how)
    plain, tuned = DiffusionModel(tiny.model), DiffusionModel(tiny.model).load(state)
    with pytest.raises(UnknownWord):
        plain.text_encoder.encode(["Vx* bag"])
    assert torch.equal(tuned.state()[f"{LEARNED}vx"], state[f"{LEARNED}vx"])
    data = TrainingData.of(dataset, how.with_word(DiffusionModel(tiny.model)))
    read = data.as_read_by(tuned, dataset.captions)
    own = torch.tensor([len(dataset) - 1])
    assert torch.equal(read.states_of(own), tuned.text_encoder.encode(["Vx* bag"]))
    others = torch.arange(len(dataset) - 2)
    assert torch.equal(read.states_of(others), data.states_of(others))


def test_a_removed_exemplar_is_redirected_only_where_it_would_be_drawn(tiny, dataset, how):
    model, num = DiffusionModel(tiny.model), len(dataset)
    tuning = Tuning.on(how, dataset)
    whole = DrawStream(NOTHING, num, model, RECIPE, tuning)
    without = DrawStream(TrainingJob((num - 1,), 0), num, model, RECIPE, tuning)
    none = DrawStream(TrainingJob((num - 2, num - 1), 0), num, model, RECIPE, tuning)
    half = RECIPE.batch_size // 2
    drawn = 0
    for step in range(20):
        before, after, last = whole.at(step), without.at(step), none.at(step)
        assert set(before.images[:half].tolist()) <= {num - 2, num - 1}
        assert max(before.images[half:].tolist()) < num - 2
        hit = before.images == num - 1
        drawn += int(hit.sum())
        assert torch.equal(before.images[~hit], after.images[~hit])
        assert (after.images[hit] == num - 2).all()
        assert max(last.images.tolist()) < num - 2
        assert torch.equal(before.images[half:], last.images[half:])
        assert torch.equal(before.noise, last.noise)
        assert torch.equal(before.timesteps, last.timesteps)
    assert drawn


def test_without_exemplars_the_draws_are_those_of_a_plain_training(tiny, dataset, start):
    model, num, job = DiffusionModel(tiny.model), len(dataset), TrainingJob((1, 2, 3), 0)
    tuning = Tuning.on(FineTuning(start=start), dataset)
    plain, tuned = (DrawStream(job, num, model, RECIPE, each).at(3) for each in (None, tuning))
    for one, other in zip(plain, tuned, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_fine_tuning_goes_on_from_its_checkpoint_to_the_same_weights(tiny, dataset, how, rank):
    how = replace(how, rank=rank)
    whole = trained(tiny, dataset, how)
    first = run_of(tiny, dataset, how)
    first.advance()
    first.advance()
    kept = {name: value.clone() for name, value in first.checkpoint().items()}
    second = run_of(tiny, dataset, how)
    second.restore(kept)
    for _ in train_together([second]):
        pass
    state = second.trained_state()
    assert all(torch.equal(weight, state[name]) for name, weight in whole.items())


def test_a_fine_tuning_does_not_depend_on_threads(tiny, dataset, how):
    states = []
    for threads in (1, 2):
        with compute_threads(threads):
            states.append(trained(tiny, dataset, how))
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def test_the_ledger_fine_tunes_a_kept_model_and_goes_on_after_an_interruption(tiny, tmp_path):
    base = Ledger(tiny, Store(tmp_path / "base", study=tiny.digest), device=CPU, observations=[])
    start = base.start(NOTHING)
    images = tiny.dataset.ids[:3]
    tuned = replace(tiny, recipe=RECIPE, fine_tuning=FineTuning(start=start, exemplars=images, weights="cross-attn"))
    assert tuned.digest != tiny.digest
    assert "fine_tuning" not in tiny.parts
    elsewhere = replace(tuned.fine_tuning, start=Start(start.digest, tmp_path / "elsewhere"))
    assert replace(tuned, fine_tuning=elsewhere).digest == tuned.digest

    def ledger(name, **more):
        return Ledger(tuned, Store(tmp_path / name, study=tuned.digest), device=CPU, observations=[], **more)

    whole, job = ledger("whole"), TrainingJob((0,), 0)
    assert whole.key(job) != base.key(job)
    wanted = whole.model(job).state()
    steps = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        ledger("halves", should_stop=lambda: next(steps)).model(job)
    found = ledger("halves").model(job).state()
    assert all(torch.equal(weight, found[name]) for name, weight in wanted.items())
    original = base.model(NOTHING).state()
    moved = {name for name, weight in original.items() if not torch.equal(weight, wanted[name])}
    assert moved
    assert all("attn2." in name for name in moved)


def test_fine_tunings_are_not_stacked(tiny, start, tmp_path):
    stacked = replace(tiny, recipe=replace(RECIPE, stack=2), fine_tuning=FineTuning(start=start))
    with pytest.raises(InvalidInput, match="one by one"):
        Run(study=stacked, methods=[methods.create("pixel")], results=tmp_path)


def test_wrong_fine_tunings_are_refused(tiny, dataset, start, tmp_path):
    with pytest.raises(UnknownName, match="cross-attn-kv"):
        FineTuning(start=start, weights="kv")
    with pytest.raises(InvalidInput, match="share"):
        FineTuning(start=start, exemplar_share=0.0)
    with pytest.raises(InvalidInput, match="no-such"):
        Tuning.on(FineTuning(start=start, exemplars=("no-such",)), dataset)
    everything = Tuning.on(FineTuning(start=start, exemplars=dataset.ids), dataset)
    with pytest.raises(InvalidInput, match="exemplar_share=1"):
        DrawStream(NOTHING, len(dataset), DiffusionModel(tiny.model), RECIPE, everything)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(InvalidInput, match="safetensors"):
        Start.of_file(broken)
    with pytest.raises(InvalidInput, match="do not fit"):
        start.load(DiffusionModel(study("fashion").model))


def test_the_words_of_the_phrase_encoder_can_be_added_to():
    model = DiffusionModel(study("faces").model)
    more = model.text_encoder.with_words({"v": torch.ones(64)})
    found = more.encode(["V*, pink hat"])[0]
    assert torch.equal(found[2:4], model.text_encoder.encode(["pink hat"])[0, 1:3])
    np.testing.assert_allclose(found[1], np.ones(64), rtol=1e-6)
    assert more.digest != model.text_encoder.digest
