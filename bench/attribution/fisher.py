"""The Fisher information of the DDPM loss over the training set: draws of single examples, and its diagonal.

A draw is one training image, flip, noise and timestep, and a sample of its own:

    F = mean over draws of g gᵀ,   g = ∇L_t(z, θ0) of one draw           (the empirical Fisher of the loss itself)

The generalised Gauss-Newton matrix of that loss, a mean over E elements, is a mean over draws and sampled targets:

    G = mean over draws of (2 / E) JᵀJ = mean of s sᵀ,   J = ∂ε_θ/∂θ,   s = √(2 / E) Jᵀu,   u ~ N(0, 1) each

which are gradients too, of √(2 / E) u·ε_θ (Martens, 2020, arXiv 1412.1193). Sums over draws are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attribution.gradients import Gradients, differentiable_copy, per_sample_gradients
from bench.contracts import AttributionContext
from bench.diffusion.model import DiffusionModel
from bench.foundation import seeds
from bench.foundation.digests import digest_of
from bench.foundation.machine import parallel

DRAWS_AT_ONCE = 128
"""Draws that share a stream of random numbers and a backward pass: part of what a Fisher is, never tuned for speed."""

LOSS, PREDICTION = "loss", "prediction"
"""Whose gradients the draws have: the loss, for F; the prediction along a random direction, for G."""

Losses = Callable[[], Tensor]


def fisher_key(selection: str, num_draws: int) -> str:
    """The name under which the diagonal of F is kept, for every method that needs it."""
    return f"fisher-{digest_of([selection, num_draws])}"


def mean_over_draws(
    context: AttributionContext,
    selection: str,
    num_draws: int,
    sums: Callable[[nn.Module, Losses], Gradients],
    output: str = LOSS,
) -> Gradients:
    """Mean over draws of what ``sums`` adds up over a batch of them, in float64 on the CPU.

    Args:
        context: of the method.
        selection: of the weights that ask for gradients.
        num_draws: equal numbers give equal draws.
        sums: given a U-Net and a function that runs it on a batch and returns each draw's output.
        output: ``LOSS`` or ``PREDICTION``.
    """
    model, data = context.model, context.data
    by_id = torch.tensor(context.dataset.by_id)

    def part_sums(draws: Tensor) -> Gradients:
        stream = seeds.generator("fisher", context.seed, int(draws[0]))
        images = by_id[torch.from_numpy(stream.integers(0, len(data), len(draws)))]
        mirrored = torch.from_numpy(stream.integers(0, 2, len(draws)))
        timesteps = torch.from_numpy(stream.integers(0, model.config.num_timesteps, len(draws)))
        noise = torch.from_numpy(stream.standard_normal((len(draws), *model.latent_shape), dtype=np.float32))
        unet = differentiable_copy(model.unet, selection)
        states = data.drawn_states(images, "fisher", context.seed, int(draws[0]))
        inputs = (data.latents[images, mirrored], states, timesteps, noise)
        moved = [part.to(model.device) for part in inputs]
        if output == PREDICTION:
            u = seeds.normal(tuple(noise.shape), "ggn", context.seed, int(draws[0])).to(model.device)
            summed = sums(unet, lambda: along(u, model, unet, *moved))
        else:
            summed = sums(unet, lambda: model.losses(*moved, unet=unet))
        return {name: value.double().cpu() for name, value in summed.items()}

    parts = parallel(part_sums, torch.arange(num_draws).split(DRAWS_AT_ONCE))
    return {name: torch.stack([part[name] for part in parts]).sum(0) / num_draws for name in parts[0]}


def along(
    u: Tensor, model: DiffusionModel, unet: nn.Module, latents: Tensor, states: Tensor, timesteps: Tensor, noise: Tensor
) -> Float[Tensor, " batch"]:
    """√(2 / E) u·ε_θ of each draw: its gradient is s."""
    predicted = model.predict_noise(model.noised(latents, noise, timesteps), timesteps, states, unet=unet)
    return (u * predicted).flatten(1).sum(1) * math.sqrt(2 / u[0].numel())


def diagonal_fisher(context: AttributionContext, selection: str, num_draws: int) -> Gradients:
    """The diagonal of F: the mean of the squared per-sample gradient, never the square of the mean."""

    def squares(unet: nn.Module, losses: Losses) -> Gradients:
        gradients = per_sample_gradients(unet, losses)
        return {name: gradient.double().square().sum(0) for name, gradient in gradients.items()}

    return mean_over_draws(context, selection, num_draws, squares)


def newton_direction(gradient: Tensor, fisher: Tensor, damping: float) -> Tensor:
    """(F + damping · mean F)⁻¹ g for a diagonal F; a weight that no training example moves stays where it is."""
    diagonal = fisher + damping * fisher.mean()
    return torch.where(diagonal > 0, gradient / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny), 0)
