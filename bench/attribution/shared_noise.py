"""Losses of all training images at the same noises, and the loss of a model that predicts nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.contracts import AttributionContext
from bench.diffusion.losses import FORWARD_BATCH
from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import TrainingData
from bench.foundation import seeds
from bench.foundation.machine import parallel


def null_losses(model: DiffusionModel, data: TrainingData) -> Float[Tensor, " timesteps"]:
    """The mean loss over the training set, at each timestep, of a U-Net that gives zero.

    A preconditioned model then predicts √(1 − ᾱ) x_t, whose error ᾱ ε − √(ᾱ (1 − ᾱ)) x has the mean square
    ᾱ² + ᾱ (1 − ᾱ) E[x²]; any other predicts no noise at all, and its error is ε.
    """
    alphas = model.alphas_cumprod
    if not model.config.preconditioned:
        return torch.ones_like(alphas)
    power = float(data.latents.double().square().mean())
    return alphas.square() + alphas * (1 - alphas) * power


@torch.no_grad()
def shared_noise_losses(
    context: AttributionContext, unet: nn.Module, timesteps: Sequence[int]
) -> Float[Tensor, "images 2 noises"]:
    """L_t(z, θ) of every image as it is and mirrored, with one noise for each timestep, shared by all images.

    Args:
        context: of the method.
        unet: the weights θ.
        timesteps: of the losses, one noise for each.
    """
    model, data = context.model, context.data
    keys = [("shared-noise", context.seed, number, timestep) for number, timestep in enumerate(timesteps)]
    noises = torch.stack([seeds.normal(model.latent_shape, *key) for key in keys])
    times, done = torch.tensor(timesteps), 0

    def work(images: Tensor) -> Tensor:
        nonlocal done
        per_image = 2 * len(times)
        latents = data.latents[images].unsqueeze(2).expand(-1, -1, len(times), -1, -1, -1).flatten(0, 2)
        inputs = (
            latents,
            data.states_of(images).repeat_interleave(per_image, 0),
            times.repeat(2 * len(images)),
            noises.repeat(2 * len(images), 1, 1, 1),
        )
        parts = zip(*(part.split(FORWARD_BATCH) for part in inputs), strict=True)
        found = [model.losses(*(part.to(model.device) for part in batch), unet=unet) for batch in parts]
        done += len(images)
        context.progress(done, len(data))
        return torch.cat(found).view(len(images), 2, len(times)).cpu()

    size = max(1, FORWARD_BATCH // (2 * len(times)))
    return torch.cat(parallel(work, torch.arange(len(data)).split(size)))
