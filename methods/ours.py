"""Ours: attribution by unlearning the synthesized image.

Unlearn the query by Newton steps on its loss, the other knowledge held by elastic weight consolidation, and score
each training image by how much of it is forgotten by proxy (arXiv 2406.09408, equations 4 to 6):

    θ ← θ + (α / N) F⁻¹ ∇L(ẑ, θ)          τ(ẑ, z) = max over flips of  L(z, θ_−ẑ) − L(z, θ0)

F is the diagonal of the Fisher information: the mean over draws of the squared per-sample gradient, one image, flip,
noise and timestep a draw, accumulated in float64. The gradient of the EWC term, near zero at θ0, is left out as in
the released code. The losses average strided timesteps, with noise keyed by image.

Deviations: ``damping`` adds a share of each tensor's mean Fisher to its diagonal (the paper has none; the authors'
follow-up uses 0.1). ``fisher="none"`` gives plain gradient ascent, the paper's ablation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench import seeds
from bench.contracts import AttributionContext, Method
from bench.digests import digest_of
from bench.errors import InvalidInput, UnknownName
from bench.gradients import WEIGHT_SELECTIONS, Gradients, differentiable_copy, per_sample_gradients, select_weights
from bench.losses import training_set_losses
from bench.machine import parallel
from bench.queries import Query
from bench.registry import register_method

GRADIENT_BATCH = 128


@register_method
@dataclass(frozen=True, kw_only=True)
class Ours(Method):
    """Attribution by unlearning.

    Attributes:
        step_size: α; tuned for each study on held-out queries.
        damping: share of a tensor's mean Fisher that is added to its diagonal.
        num_steps: Newton steps (or gradient steps).
        weights: which weights move: "cross-attn-kv", "cross-attn", "attn" or "all".
        fisher: "diagonal", or "none" for plain gradient ascent θ ← θ + α ∇L(ẑ, θ).
        num_fisher_draws: single examples in the Fisher's mean.
        num_gradient_draws: (noise, timestep) draws in the query's gradient, at each step.
        timestep_stride: of the timesteps at which losses are compared, from half a stride on.
        flips: "max" or "mean" over an image and its mirror image.
    """

    name: ClassVar[str] = "ours"
    summary: ClassVar[str] = "training images forgotten when the query is unlearned"

    step_size: float = 0.01
    damping: float = 0.1
    num_steps: int = 1
    weights: str = "cross-attn-kv"
    fisher: str = "diagonal"
    num_fisher_draws: int = 8192
    num_gradient_draws: int = 4000
    timestep_stride: int = 100
    flips: str = "max"

    def __post_init__(self) -> None:
        if self.fisher not in ("diagonal", "none") or self.flips not in ("max", "mean"):
            raise InvalidInput(
                f"ours: fisher='{self.fisher}', flips='{self.flips}'; expected diagonal or none, max or mean."
            )
        if self.weights not in WEIGHT_SELECTIONS:
            raise UnknownName("selection of weights", self.weights, WEIGHT_SELECTIONS)
        numbers = (self.num_steps, self.num_fisher_draws, self.num_gradient_draws, self.timestep_stride)
        if min(numbers) < 1 or self.damping < 0:
            raise InvalidInput(f"ours: {self}: counts of 1 or more and a damping of 0 or more are expected.")

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Rise of each image's loss when the query is unlearned."""
        timesteps = range(self.timestep_stride // 2, context.model.config.num_timesteps, self.timestep_stride)
        fisher = self.fisher_of(context) if self.fisher == "diagonal" else None
        unlearned = [self.unlearn(context, query, fisher) for query in queries]
        before = context.cached(
            f"losses-{digest_of([list(timesteps)])}",
            lambda: {"losses": self._losses(context, [context.model.unet], timesteps)[0]},
        )["losses"]
        after = self._losses(context, unlearned, timesteps)
        rise = (after - before).mean(-1)
        return rise.amax(-1) if self.flips == "max" else rise.mean(-1)

    def _losses(
        self, context: AttributionContext, unets: Sequence[nn.Module], timesteps: Sequence[int]
    ) -> Float[Tensor, "unets images 2 timesteps"]:
        return training_set_losses(
            context.model,
            unets,
            context.data,
            context.dataset.ids,
            timesteps,
            seed=context.seed,
            progress=context.progress,
        )

    def fisher_of(self, context: AttributionContext) -> Gradients:
        """The diagonal Fisher information of the selected weights over the training set, shared by all queries."""
        key = digest_of([self.weights, self.num_fisher_draws])
        return context.cached(f"fisher-{key}", lambda: diagonal_fisher(context, self.weights, self.num_fisher_draws))

    def unlearn(self, context: AttributionContext, query: Query, fisher: Gradients | None) -> nn.Module:
        """The weights θ_−ẑ: a copy of the model's U-Net after ``num_steps`` steps up the query's loss."""
        unet: nn.Module = copy.deepcopy(context.model.unet)
        for step in range(self.num_steps):
            gradient = query_gradient(context, unet, query, self.weights, self.num_gradient_draws, step)
            weights = select_weights(unet, self.weights)
            for name, weight in weights.items():
                ascent = gradient[name]
                if fisher is not None:
                    ascent = newton_direction(ascent, fisher[name], self.damping) / len(context.dataset)
                weight.data += self.step_size * ascent.to(weight.dtype)
        return unet


def newton_direction(gradient: Tensor, fisher: Tensor, damping: float) -> Tensor:
    """(F + damping · mean F)⁻¹ g for a diagonal F; a weight that no training example moves stays where it is."""
    diagonal = fisher + damping * fisher.mean()
    return torch.where(diagonal > 0, gradient / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny), 0)


def diagonal_fisher(context: AttributionContext, selection: str, num_draws: int) -> Gradients:
    """Mean over ``num_draws`` draws of the squared per-sample gradient, in float64."""
    model, data = context.model, context.data

    def squares(draws: Tensor) -> Gradients:
        stream = seeds.generator("fisher", context.seed, int(draws[0]))
        images = torch.from_numpy(stream.integers(0, len(data), len(draws)))
        mirrored = torch.from_numpy(stream.integers(0, 2, len(draws)))
        timesteps = torch.from_numpy(stream.integers(0, model.config.num_timesteps, len(draws)))
        noise = torch.from_numpy(stream.standard_normal((len(draws), *model.latent_shape), dtype=np.float32))
        unet = differentiable_copy(model.unet, selection)
        inputs = (data.latents[images, mirrored], data.states_of(images), timesteps, noise)
        moved = [part.to(model.device) for part in inputs]
        gradients = per_sample_gradients(unet, lambda: model.losses(*moved, unet=unet))
        return {name: gradient.double().square().sum(0).cpu() for name, gradient in gradients.items()}

    parts = parallel(squares, torch.arange(num_draws).split(GRADIENT_BATCH))
    return {name: torch.stack([part[name] for part in parts]).sum(0) / num_draws for name in parts[0]}


def query_gradient(
    context: AttributionContext, unet: nn.Module, query: Query, selection: str, num_draws: int, step: int
) -> Gradients:
    """∇L(ẑ, θ) averaged over ``num_draws`` draws of (noise, timestep), timesteps without repeats inside a batch."""
    model = context.model
    state = model.text_encoder.encode([query.prompt])

    def part_gradient(draws: Tensor) -> Gradients:
        stream = seeds.generator("query-gradient", context.seed, query.digest, step, int(draws[0]))
        timesteps = torch.from_numpy(stream.permutation(model.config.num_timesteps)[: len(draws)])
        noise = torch.from_numpy(stream.standard_normal((len(draws), *model.latent_shape), dtype=np.float32))
        own = differentiable_copy(unet, selection)
        inputs = (query.latent.expand_as(noise), state.expand(len(draws), -1, -1), timesteps, noise)
        model.losses(*(part.to(model.device) for part in inputs), unet=own).sum().backward()
        weights = select_weights(own, selection)
        return {name: weight.grad.double().cpu() for name, weight in weights.items() if weight.grad is not None}

    parts = parallel(part_gradient, torch.arange(num_draws).split(GRADIENT_BATCH))
    gradient = {name: torch.stack([part[name] for part in parts]).sum(0) / num_draws for name in parts[0]}
    return {name: value.to(model.device) for name, value in gradient.items()}
