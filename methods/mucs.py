"""MUCS: mirrored unlearning, and how far losses at shared noises are skewed by it.

    θ_−ẑ: from θ0 by AdamW on   mean over training images of L̃(z)  −  λ · mean of min( L̃(ẑ), 1 )       until L̃(ẑ) ≈ 1
    τ(ẑ, z) = max over flips of the mean over noises of  ( L̃(z, θ_−ẑ) − L̃(z, θ0) ) / ( L̃(z, θ_−ẑ) + L̃(z, θ0) + 10⁻³ )

L̃ is the loss in units of the null loss, that of a model which predicts nothing but the mean: ascent on the query is
bounded by it, since above it there is nothing left to forget, and mirrored by descent on as many training images, which
keeps the rest. All images see the same noises, one at each of ``num_noises`` timesteps, so that the skew of an image
differs from another's by the image alone.

Reference: Serrà et al., arXiv 2605.17938, and its released code (Apache-2.0, read and not copied) for what the paper's
text leaves out: λ = 0.2, the stop at 95 % of the null loss, 100 noises, 10⁻³. In its weighting (EDM's) the null loss is
1 at all noise levels; dividing by the null loss of each timestep gives the same here. Deviations: all weights move
(theirs: a transformer's MLPs, without biases); the stop takes a running mean of the batches' losses, and a limit of
steps; the larger of both sides; the learning rate is a setting (theirs: a tenth of the training's). They leave out the
least noisy 30 % of EDM's schedule, σ < 0.32: in this one, t < 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attribution.gradients import differentiable_copy
from bench.attribution.shared_noise import null_losses, shared_noise_losses
from bench.attribution.sides import check_flips, over_sides
from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.diffusion.selections import check_selection, select_weights
from bench.errors import InvalidInput
from bench.foundation import seeds
from bench.foundation.digests import digest_of
from bench.foundation.machine import parallel
from bench.registry import register_method

EPSILON = 1e-3
MEMORY = 0.8
"""Of the running mean of the query's loss, by which the ascent stops."""


@register_method
@dataclass(frozen=True, kw_only=True)
class Mucs(Method):
    """Mirrored unlearning with the skew of losses at shared noises.

    Attributes:
        ascent_weight: λ.
        learning_rate: of AdamW.
        max_steps: of the ascent, where the null loss is not reached before.
        tolerance: the ascent stops at 1 − tolerance of the null loss.
        batch_size: training images a step, and as many noisy copies of the query.
        weights: which weights move: "all", "cross-attn-kv", "cross-attn" or "attn".
        num_noises: at which losses are compared, the same for all images.
        timestep_start: losses are compared from this timestep on.
        flips: "max" or "mean" over an image and its mirror image.
    """

    name: ClassVar[str] = "mucs"
    summary: ClassVar[str] = "skew of the images' losses at shared noises, by a bounded and mirrored unlearning"
    honours_regions: ClassVar[bool] = True

    ascent_weight: float = 0.2
    learning_rate: float = 5e-4
    max_steps: int = 200
    tolerance: float = 0.05
    batch_size: int = 64
    weights: str = "all"
    num_noises: int = 100
    timestep_start: int = 100
    flips: str = "max"

    def __post_init__(self) -> None:
        check_flips(self.name, self.flips)
        check_selection(self.weights)
        counts, rates = min(self.batch_size, self.num_noises), (self.ascent_weight, self.learning_rate)
        if counts < 1 or self.max_steps < 0 or not all(0 <= rate < math.inf for rate in rates):
            raise InvalidInput(f"mucs: {self}: counts of 1 or more, and rates and weights of 0 or more are expected.")
        if not 0 < self.tolerance < 1:
            raise InvalidInput(f"mucs: tolerance={self.tolerance}; expected a share between 0 and 1.")

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Skew of each image's losses when the query is unlearned, the larger of an image's two sides."""
        total = context.model.config.num_timesteps
        if self.timestep_start + self.num_noises > total:
            raise InvalidInput(
                f"mucs: {self.num_noises} timesteps from timestep_start={self.timestep_start} on are not to be had of "
                f"{total}: give fewer noises or an earlier start."
            )
        timesteps = np.linspace(self.timestep_start, total - 1, self.num_noises).round().astype(int).tolist()
        null = null_losses(context.model, context.data)

        def losses(unet: nn.Module) -> Float[Tensor, "images 2 noises"]:
            return shared_noise_losses(context, unet, timesteps) / null[timesteps].cpu()

        key = digest_of([timesteps])
        before = context.cached(f"shared-noise-losses-{key}", lambda: {"losses": losses(context.model.unet)})["losses"]
        unlearned = parallel(lambda query: self.unlearn(context, query, null), queries)
        skews = [skew(before, losses(unet)) for unet in unlearned]
        sides = torch.stack(skews).float()
        return over_sides(sides, self.flips)

    def unlearn(self, context: AttributionContext, query: Query, null: Float[Tensor, " timesteps"]) -> nn.Module:
        """θ_−ẑ."""
        model, data, device = context.model, context.data, context.model.device
        unet = differentiable_copy(model.unet, self.weights)
        optimizer = torch.optim.AdamW(select_weights(unet, self.weights).values(), lr=self.learning_rate)
        own, by_id = model.text_encoder.encode([query.prompt])[0], torch.tensor(context.dataset.by_id)
        size, reached = self.batch_size, 0.0
        for step in range(self.max_steps):
            stream = seeds.generator("mucs", context.seed, query.noise_key, step)
            images = by_id[torch.from_numpy(stream.integers(0, len(data), size))]
            sides = torch.from_numpy(stream.integers(0, 2, size))
            timesteps = torch.from_numpy(stream.integers(0, model.config.num_timesteps, 2 * size)).to(device)
            noise = torch.from_numpy(stream.standard_normal((2 * size, *model.latent_shape), dtype=np.float32))
            states = data.drawn_states(images, "mucs", context.seed, query.noise_key, step)
            kept = data.latents[images, sides], states, timesteps[:size], noise[:size]
            gone = query.latent.expand(size, -1, -1, -1), own.expand(size, -1, -1), timesteps[size:], noise[size:]
            rest = model.losses(*(part.to(device) for part in kept), unet=unet) / null[timesteps[:size]]
            raised = model.losses(*(part.to(device) for part in gone), unet=unet, region=query.region)
            bounded = (raised / null[timesteps[size:]]).clamp(max=1).mean()
            reached += (1 - MEMORY) * (float(bounded.detach()) - reached) if step else float(bounded.detach())
            if reached >= 1 - self.tolerance:
                break
            optimizer.zero_grad()
            (rest.mean() - self.ascent_weight * bounded).backward()
            optimizer.step()
        return unet


def skew(
    before: Float[Tensor, "images 2 noises"], after: Float[Tensor, "images 2 noises"]
) -> Float[Tensor, "images 2"]:
    """The mean over noises of (after − before) / (after + before + 10⁻³)."""
    return ((after - before) / (after + before + EPSILON)).mean(-1)
