"""Numbers that are known another way: brute force, closed forms, limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from bench.attribution.gradients import differentiable_copy, per_sample_gradients
from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import WEIGHT_SELECTIONS, select_weights
from bench.experiments.selection import top_k


def batch_of(model, data, size=5):
    stream = torch.Generator().manual_seed(0)
    images = torch.arange(size)
    noise = torch.randn((size, *model.latent_shape), generator=stream)
    return (
        data.latents[images, 0],
        data.states_of(images),
        torch.tensor([3, 250, 500, 700, 990][:size]),
        noise,
    )


@pytest.mark.parametrize("selection", WEIGHT_SELECTIONS)
def test_per_sample_gradients_equal_a_loop_of_backward_passes(model, data, selection):
    batch = batch_of(model, data)
    unet = differentiable_copy(model.unet, selection)
    fast = per_sample_gradients(unet, lambda: model.losses(*batch, unet=unet))
    assert set(fast) == set(select_weights(unet, selection))
    for index in range(5):
        unet.zero_grad()
        model.losses(*(part[index : index + 1] for part in batch), unet=unet).sum().backward()
        for name, weight in select_weights(unet, selection).items():
            torch.testing.assert_close(fast[name][index], weight.grad, rtol=2e-3, atol=1e-6)


def test_noising_equals_the_diffusers_scheduler(model, data):
    latents, _, timesteps, noise = batch_of(model, data)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    expected = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(model.noised(latents, noise, timesteps), expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_preconditioning_is_the_plain_unet(tiny, data):
    plain = DiffusionModel(replace(tiny.model, preconditioned=False))
    latents, states, timesteps, noise = batch_of(plain, data)
    noisy = plain.noised(latents, noise, timesteps)
    with torch.no_grad():
        expected = (noise - plain.unet(noisy, timesteps, states).sample).square().mean((1, 2, 3))
        torch.testing.assert_close(plain.losses(latents, states, timesteps, noise), expected)


def test_top_k_breaks_ties_by_id():
    assert top_k(torch.tensor([1.0, 2.0, 2.0, 0.0]), ["d", "c", "b", "a"], 3) == (2, 1, 0)
    assert np.array_equal(top_k(torch.zeros(3), ["c", "a", "b"], 2), (1, 2))
