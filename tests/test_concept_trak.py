"""Concept-TRAK against plain autograd, and what it takes for the concept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.attribution.guidance import without_concept
from bench.data.customizations import NEW_WORD
from bench.diffusion.fine_tuning import FineTuning, Start
from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput
from bench.registry import methods
from bench.studies import study

FEW = {"num_timesteps": 2, "inversion_steps": 4, "num_query_draws": 2, "projection_dim": 64, "weights": "cross-attn-kv"}


def gradient(model, loss, weights="cross-attn-kv"):
    """∇ of a loss with respect to the selected weights, of length one."""
    chosen = select_weights(model.unet, weights)
    for weight in chosen.values():
        weight.requires_grad_(True)
    found = torch.autograd.grad(loss(), list(chosen.values()))
    model.unet.requires_grad_(False)
    norm = torch.stack([part.square().sum() for part in found]).sum().sqrt()
    return {name: (part / norm)[None] for name, part in zip(chosen, found, strict=True)}


def test_features_are_those_of_the_losses_in_the_paper(context, queries):
    """The gradient of the mean of (sg(target) − ε)², by autograd, one image and one query at a time."""
    method, model = methods.create("concept_trak", "tiny", **FEW), context.model
    few = replace(
        context,
        dataset=context.dataset.only(range(2)),
        data=replace(context.data, latents=context.data.latents[:2], caption_of=context.data.caption_of[:2]),
    )
    found = method.training_features(few, 0, model, method.output)["features"]
    projection = method.projection_of(few, 0, model)
    total, times = torch.zeros(64), [number * 1000 // 5 for number in range(5)]
    image, state = few.data.latents[1, 1][None], few.data.states[few.data.caption_of[1]][None]
    noisy = image
    for number in range(1, 5):
        now, later = (torch.tensor([time]) for time in times[number - 1 : number + 1])
        one, two = model.alphas_cumprod[now], model.alphas_cumprod[later]
        with torch.no_grad():
            noise = model.predict_noise(noisy, now, state)
        guessed = (noisy - (1 - one).sqrt() * noise) / one.sqrt()
        noisy = two.sqrt() * guessed + (1 - two).sqrt() * noise
        if number % 2 == 0:
            point = noisy.clone().requires_grad_(True)
            guessed = (point - (1 - two).sqrt() * model.predict_noise(point, later, state)) / two.sqrt()
            step = -torch.autograd.grad((guessed - image).square().mean(), point)[0]

            def loss(noisy=noisy, later=later, step=step):
                made = model.predict_noise(noisy, later, state)
                return ((made - step).detach() - made).square().mean()

            total += projection(gradient(model, loss))[0]
    torch.testing.assert_close(found[1, 1], total, rtol=1e-3, atol=1e-4)

    query = queries[0]
    steps = []
    query.sampler.run(model, query.noise[None], [query.prompt], steps.append)
    states = model.text_encoder.encode([query.prompt, ""])
    total = torch.zeros(64)
    for step in (steps[len(steps) // 4], steps[3 * len(steps) // 4]):
        time = torch.tensor([step.timestep])

        def loss(step=step, time=time):
            made, other = (model.predict_noise(step.noisy, time, state[None]) for state in states)
            return ((made + 3 * (made - other)).detach() - made).square().mean()

        total += projection(gradient(model, loss))[0]
    torch.testing.assert_close(method.query_features(few, 0, model, [query])[0], total, rtol=1e-3, atol=1e-4)
    assert torch.isfinite(method.scores(few, queries)).all()


def test_the_concept_is_the_new_word():
    model = DiffusionModel(study("customized").model)
    assert without_concept(model, "V*, pink hat") == ""  # not learned: the concept is the whole prompt
    learned = FineTuning(start=Start("none", Path("none")), word=NEW_WORD).with_word(model)
    assert without_concept(learned, "V*, pink hat, smile") == "pink hat, smile"
    assert without_concept(learned, "pink hat") == ""
    assert without_concept(learned, "V*") == ""


def test_wrong_settings_are_refused():
    with pytest.raises(InvalidInput, match="a multiple of num_timesteps"):
        methods.create("concept_trak", inversion_steps=7)
