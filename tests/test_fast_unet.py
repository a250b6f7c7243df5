"""The fast forward pass and its gradients equal diffusers', and so does a training with it."""

from dataclasses import replace

import pytest
import torch

import bench.diffusion.training
from bench.diffusion.channels_last import ChannelsLastUNet, channels_last_forward
from bench.diffusion.fast_unet import FastUNet, covers, fast_forward
from bench.diffusion.losses import query_losses
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.foundation.machine import compute_threads
from bench.studies import study

CPU = torch.device("cpu")
FASHION, EMOJI, TINY = (study(name).model for name in ("fashion", "emoji", "tiny"))
FACES = study("faces").model
SHAPES = {"fashion": FASHION, "emoji": EMOJI, "tiny": TINY, "16": replace(FASHION, sample_size=16, latent_channels=3)}
SHAPES |= {"two heads": replace(FASHION, attention_heads=2), "faces": FACES}


def gradients(unet, parameters, inputs):
    output = unet(*inputs, return_dict=False)[0]
    return output.detach(), torch.autograd.grad(output.square().sum(), list(parameters))


@pytest.mark.parametrize(("forward", "kind"), [(fast_forward, FastUNet), (channels_last_forward, ChannelsLastUNet)])
@pytest.mark.parametrize("name", SHAPES)
def test_the_fast_forward_and_its_gradients_equal_diffusers(name, forward, kind):
    model = DiffusionModel(SHAPES[name])
    unet, generator = model.unet, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in unet.parameters():  # no layer may be silent
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    states = torch.randn(3, model.config.num_tokens, model.text_encoder.dim, generator=generator)
    inputs = (torch.randn(3, *model.latent_shape, generator=generator), torch.tensor([3, 500, 999]), states)
    fast = forward(unet)
    assert isinstance(fast, kind)
    (one, its), (other, theirs) = (gradients(each, unet.parameters(), inputs) for each in (fast, unet))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    for mine, yours in zip(its, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-5 * float(yours.abs().max()))


def test_what_is_not_covered_keeps_diffusers_forward():
    other = DiffusionModel(replace(TINY, mid_block="UNetMidBlock2DCrossAttn")).unet
    assert not covers(other)
    assert fast_forward(other) is other
    assert channels_last_forward(other) is other


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_with_it_agrees_with_diffusers_forward(channels_last, monkeypatch):
    whole = study("fashion")
    whole = replace(whole, per_concept=20, recipe=replace(whole.recipe, channels_last=channels_last))
    data, losses = TrainingData.of(whole.dataset, DiffusionModel(whole.model)), []
    for _ in range(2):
        run = TrainingRun(whole.model, data, replace(whole.recipe, num_steps=50), TrainingJob((), 0), device=CPU)
        for _ in range(50):
            run.advance()
        query = Query("q", "a photo of a bag", 0, data.latents[1, 0], data.latents[0, 0], whole.sampler)
        losses.append(query_losses(DiffusionModel(whole.model).load(run.trained_state()), query, [100, 500], seed=0))
        for forward in ("fast_forward", "channels_last_forward"):
            monkeypatch.setattr(bench.diffusion.training, forward, lambda unet: unet)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_channels_last_gives_the_same_bits_on_one_thread_and_on_two():
    whole = replace(study("fashion"), per_concept=20)
    data = TrainingData.of(whole.dataset, DiffusionModel(whole.model))
    recipe, states = replace(whole.recipe, num_steps=3, channels_last=True), []
    for threads in (1, 2):
        with compute_threads(threads):
            run = TrainingRun(whole.model, data, recipe, TrainingJob((), 0), device=CPU)
            while not run.finished:
                run.advance()
        states.append(run.weights.detach())
    assert torch.equal(*states)


def test_older_studies_keep_their_digests():
    assert "channels_last" not in study("fashion").parts["recipe"]
    assert study("faces").parts["recipe"]["channels_last"]
