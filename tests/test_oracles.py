"""Numbers that are known another way: brute force, closed forms, limits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

import methods.ours
from bench.gradients import WEIGHT_SELECTIONS, differentiable_copy, per_sample_gradients, select_weights
from bench.losses import image_noise, query_losses
from bench.model import DiffusionModel
from bench.selection import top_k
from methods.ours import Ours, diagonal_fisher, newton_direction, query_gradient


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


def test_fisher_is_the_mean_of_squared_per_sample_gradients_not_the_square_of_the_mean(context, monkeypatch):
    monkeypatch.setattr(methods.ours, "GRADIENT_BATCH", 4)
    seen = []
    original = methods.ours.per_sample_gradients

    def spy(unet, losses):
        gradients = original(unet, losses)
        seen.append(gradients)
        return gradients

    monkeypatch.setattr(methods.ours, "per_sample_gradients", spy)
    fisher = diagonal_fisher(context, "cross-attn-kv", 8)
    for name, diagonal in fisher.items():
        every = torch.cat([gradients[name] for gradients in seen]).double()
        assert diagonal.dtype == torch.float64
        torch.testing.assert_close(diagonal, (every**2).mean(0))
        assert not torch.allclose(diagonal, every.mean(0) ** 2, atol=0)


def test_newton_step_maximises_a_quadratic_in_one_step():
    # L(θ) − ½ (θ − θ0)ᵀ F (θ − θ0) with L = g·θ has its maximum at θ0 + F⁻¹ g.
    stream = torch.Generator().manual_seed(1)
    gradient, fisher = (
        torch.randn(50, generator=stream).double(),
        torch.rand(50, generator=stream).double() + 0.1,
    )
    step = newton_direction(gradient, fisher, 0.0)

    def objective(move):
        return gradient @ move - 0.5 * (fisher * move) @ move

    assert torch.allclose(step, gradient / fisher)
    for _ in range(20):
        other = step + 0.1 * torch.randn(50, generator=stream).double()
        assert objective(step) > objective(other)


def test_damping_adds_a_share_of_the_mean_and_unmoved_weights_stay():
    gradient, fisher = torch.tensor([1.0, 0.0]).double(), torch.tensor([2.0, 0.0]).double()
    assert newton_direction(gradient, fisher, 0.0).tolist() == [0.5, 0.0]
    assert newton_direction(gradient, fisher, 1.0).tolist() == [1 / 3, 0.0]


def test_no_step_gives_scores_of_exactly_zero(context, queries):
    scores = Ours(step_size=0.0, num_fisher_draws=64, num_gradient_draws=64).scores(context, queries)
    assert torch.count_nonzero(scores) == 0


@pytest.mark.parametrize("fisher", ["diagonal", "none"])
def test_unlearning_raises_the_loss_of_the_query(context, queries, fisher):
    step = 0.5 if fisher == "diagonal" else 0.05
    method = Ours(step_size=step, num_fisher_draws=512, num_gradient_draws=512, fisher=fisher)
    curvature = method.fisher_of(context) if fisher == "diagonal" else None
    unlearned = copy.copy(context.model)
    unlearned.unet = method.unlearn(context, queries[0], curvature)
    timesteps = range(0, 1000, 20)
    before = query_losses(context.model, queries[0], timesteps, seed=0).mean()
    after = query_losses(unlearned, queries[0], timesteps, seed=0).mean()
    assert after > before


def test_a_small_ascent_scores_the_inner_product_of_gradients(context, queries):
    # To first order L(z, θ + α g) − L(z, θ) = α ⟨∇L(z, θ), g⟩ with g = ∇L(ẑ, θ): the sign and the orientation of τ.
    step, timesteps, model = 0.02, [100, 300, 500, 700, 900], context.model
    method = Ours(step_size=step, fisher="none", num_gradient_draws=256, timestep_stride=200, flips="mean")
    scores = method.scores(context, queries)
    for row, query in enumerate(queries):
        query_side = query_gradient(context, model.unet, query, "cross-attn-kv", 256, 0)
        for index in (0, 17, 60):
            unet = differentiable_copy(model.unet, "cross-attn-kv")
            noise = image_noise(model, context.dataset.ids[index], timesteps, 0).flatten(0, 1)
            latents = context.data.latents[index].repeat_interleave(len(timesteps), 0)
            states = context.data.states_of(torch.tensor([index])).expand(len(noise), -1, -1)
            model.losses(latents, states, torch.tensor(timesteps * 2), noise, unet=unet).mean().backward()
            product = sum((w.grad * query_side[n]).sum() for n, w in select_weights(unet, "cross-attn-kv").items())
            assert float(scores[row, index]) / step == pytest.approx(float(product), rel=0.05, abs=2e-5)


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
