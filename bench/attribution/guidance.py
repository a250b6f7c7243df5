"""Guidance as the direction of a gradient: towards a given image on the way of its inversion, and without a new word.

Reference: Park et al., "Concept-TRAK", arXiv 2507.06547; diffusion posterior sampling, Chung et al., arXiv 2209.14687.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.influence import Rows
from bench.data.captions import WORD
from bench.diffusion.model import DiffusionModel


def inverted(
    model: DiffusionModel,
    latents: Float[Tensor, "batch c h w"],
    states: Float[Tensor, "batch tokens dim"],
    steps: int,
    looks: int,
) -> list[Rows]:
    """Images on the way of their DDIM inversion, with the guidance towards them in place of the noise.

    Args:
        model: that inverts.
        latents, states: of the images, and of their captions.
        steps: of the inversion.
        looks: how many of the steps are returned, at equal distances; a divisor of ``steps``.
    """
    images, states = latents.to(model.device), states.to(model.device)
    total, every = model.config.num_timesteps, steps // looks
    times = [number * total // (steps + 1) for number in range(steps + 1)]
    noisy, found = images, []
    for number in range(1, steps + 1):
        now, later = (torch.full((len(images),), time, device=model.device) for time in times[number - 1 : number + 1])
        with torch.no_grad():
            noise = model.predict_noise(noisy, now, states)
            noisy = model.noised(clean(model, noisy, noise, now), noise, later)
        if number % every == 0:
            found.append(Rows(noisy.cpu(), states.cpu(), later.cpu(), guidance(model, noisy, later, states, images)))
    return found


def clean(
    model: DiffusionModel, noisy: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], times: Tensor
) -> Float[Tensor, "batch c h w"]:
    """x̂0 = (x_t − sqrt(1 − ᾱ) ε) / sqrt(ᾱ)."""
    alphas = model.alphas_cumprod[times].view(-1, 1, 1, 1)
    return (noisy - (1 - alphas).sqrt() * noise) / alphas.sqrt()


def guidance(
    model: DiffusionModel, noisy: Tensor, times: Tensor, states: Tensor, images: Tensor
) -> Float[Tensor, "batch c h w"]:
    """g_t = −∇_{x_t} mean over elements of (x̂0(x_t) − x)², on the CPU."""
    with torch.enable_grad():
        point = noisy.detach().clone().requires_grad_(True)
        away = (clean(model, point, model.predict_noise(point, times, states), times) - images).square()
        [slope] = torch.autograd.grad(away.flatten(1).mean(1).sum(), point)
    return -slope.cpu()


def without_concept(model: DiffusionModel, prompt: str) -> str:
    """``prompt`` without the words that were learned; the empty prompt where that changes nothing."""
    text = prompt
    for word in model.text_encoder.learned:
        text = re.sub(rf"(?<!\w){re.escape(word)}\*?(?!\w)", " ", text, flags=re.IGNORECASE)
    phrases = [" ".join(phrase.split()) for phrase in text.split(",") if WORD.findall(phrase.lower())]
    return "" if text == prompt else ", ".join(phrases)
