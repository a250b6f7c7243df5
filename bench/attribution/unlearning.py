"""Unlearning a synthesized image and scoring by what is forgotten with it, for any metric of the weight space.

    θ ← θ + α d(∇L(ẑ, θ))          τ(ẑ, z) = max over flips of  L(z, θ_−ẑ) − L(z, θ0)

Methods differ in d, which turns the gradient into a direction of ascent: F⁻¹∇L/N for some Fisher F, or ∇L itself
(arXiv 2406.09408, equations 4 to 6). The gradient of the EWC term, near zero at θ0, is left out as in the released
code. L averages strided timesteps, with noise keyed by image.

The size of a step is α = ``step_size``, as in the paper, or, where ``query_rise`` is given, the one with which step s
of n has raised the query's own loss by the share ``query_rise`` · s / n: directions of different scales are then
compared at the same amount of unlearning, on any model, without tuning each.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attribution.gradients import Gradients, differentiable_copy
from bench.attribution.kept_losses import kept_losses
from bench.attribution.sides import check_flips, over_sides
from bench.contracts import AttributionContext, Method
from bench.diffusion.losses import image_loss_maps, strided_timesteps, training_set_losses
from bench.diffusion.queries import Query
from bench.diffusion.selections import check_selection, select_weights
from bench.errors import InvalidInput, MethodFailed
from bench.foundation import seeds
from bench.foundation.machine import parallel

DRAWS_AT_ONCE = 128
"""Draws that share a stream of random numbers: part of what a query's gradient is, never tuned for speed."""

LOSSES_AT_ONCE = 50
"""Timesteps of a query's loss in one pass of one thread."""

Ascent = Callable[[Gradients], Gradients]


@dataclass(frozen=True, kw_only=True)
class Unlearning(Method):
    """A method that unlearns the query; a subclass says in which direction.

    Attributes:
        step_size: α; tuned for each study on held-out queries. Not used where ``query_rise`` is given.
        query_rise: share by which the query's own loss rises; 0 to step by ``step_size``.
        damping: share of the mean Fisher of a tensor (or layer) that is added to its diagonal.
        num_steps: Newton steps (or gradient steps).
        weights: which weights move: "cross-attn-kv", "cross-attn", "attn" or "all".
        num_fisher_draws: single examples in the Fisher's mean.
        num_gradient_draws: (noise, timestep) draws in the query's gradient, at each step.
        timestep_stride: of the timesteps at which losses are compared, from half a stride on.
        timestep_limit: losses are compared below this timestep. Near the end of the schedule the image is all noise,
            which any model predicts: what is forgotten shows earlier, and there the draws are better spent.
        flips: "max" or "mean" over an image and its mirror image.
    """

    honours_regions: ClassVar[bool] = True
    has_maps: ClassVar[bool] = True

    step_size: float = 0.01
    query_rise: float = 0.0
    damping: float = 0.1
    num_steps: int = 1
    weights: str = "cross-attn-kv"
    num_fisher_draws: int = 8192
    num_gradient_draws: int = 4000
    timestep_stride: int = 100
    timestep_limit: int = 1000
    flips: str = "max"

    def __post_init__(self) -> None:
        check_flips(self.name, self.flips)
        check_selection(self.weights)
        numbers = (self.num_steps, self.num_fisher_draws, self.num_gradient_draws, self.timestep_stride)
        if min(numbers) < 1 or min(self.damping, self.query_rise) < 0:
            raise InvalidInput(
                f"{self.name}: {self}: counts of 1 or more, a damping and a query_rise of 0 or more are expected."
            )
        if self.timestep_limit <= self.timestep_stride // 2:
            raise InvalidInput(
                f"{self.name}: no timestep lies below timestep_limit={self.timestep_limit}, as the first one is "
                f"{self.timestep_stride // 2}, half of timestep_stride; give a higher limit or a smaller stride."
            )

    @abstractmethod
    def ascent(self, context: AttributionContext) -> Ascent:
        """d: turns the gradient of the query's loss into the direction of a step."""

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Rise of each image's loss when the query is unlearned."""
        timesteps = self.timesteps(context)
        ascent = self.ascent(context)
        unlearned = [self.unlearn(context, query, ascent) for query in queries]
        before = kept_losses(context, context.model, timesteps)
        after = training_set_losses(
            context.model, unlearned, context.data, context.dataset.ids, timesteps,
            seed=context.seed, progress=context.progress,
        )  # fmt: skip
        rise = (after - before).mean(-1)
        return over_sides(rise, self.flips)

    def timesteps(self, context: AttributionContext) -> list[int]:
        """At which losses are compared."""
        steps = strided_timesteps(context.model, self.timestep_stride)
        return [step for step in steps if step < self.timestep_limit]

    def maps(
        self, context: AttributionContext, query: Query, images: Sequence[int]
    ) -> Float[Tensor, "images rows columns"]:
        """Rise of the loss of each latent cell when the query is unlearned: its mean over cells is the score.

        Of the two sides of an image the one that gives the score (or their mean), the mirrored one turned back.
        """
        model, ids = context.model, context.dataset.ids
        unets = model.unet, self.unlearn(context, query, self.ascent(context))
        before, after = (
            image_loss_maps(model, unet, context.data, images, ids, self.timesteps(context), seed=context.seed)
            for unet in unets
        )
        rise = after - before
        mirrored = (rise.mean((2, 3)).argmax(1) == 1).float().view(-1, 1, 1)
        share = mirrored if self.flips == "max" else torch.full_like(mirrored, 0.5)
        return (1 - share) * rise[:, 0] + share * rise[:, 1].flip(-1)

    def unlearn(self, context: AttributionContext, query: Query, ascent: Ascent) -> nn.Module:
        """θ_−ẑ: a copy of the model's U-Net after ``num_steps`` steps up the query's loss."""
        unet: nn.Module = copy.deepcopy(context.model.unet)
        start = query_loss(context, unet, query) if self.query_rise else 0.0
        for step in range(self.num_steps):
            gradient = query_gradient(context, unet, query, self.weights, self.num_gradient_draws, step)
            direction, size = ascent(gradient), self.step_size
            if self.query_rise:
                wanted = start * (1 + self.query_rise * (step + 1) / self.num_steps)
                size = step_reaching(context, unet, query, direction, wanted)
            unet = moved(unet, direction, size)
        return unet


def moved(unet: nn.Module, direction: Gradients, size: float) -> nn.Module:
    """A copy of ``unet`` with the weights θ + size · direction."""
    result = copy.deepcopy(unet)
    _move(result, unet, direction, size)
    return result


def _move(scratch: nn.Module, unet: nn.Module, direction: Gradients, size: float) -> None:
    """Give ``scratch``, a copy of ``unet``, the weights θ + size · direction."""
    weights, start = dict(scratch.named_parameters()), dict(unet.named_parameters())
    for name, step in direction.items():
        weights[name].data.copy_(start[name].data + size * step.to(start[name].dtype))


def step_reaching(
    context: AttributionContext, unet: nn.Module, query: Query, direction: Gradients, wanted: float
) -> float:
    """The size of the step along ``direction`` after which the query's loss is ``wanted``, to 1/500 of the size."""

    scratch = copy.deepcopy(unet)

    def loss_after(size: float) -> float:
        _move(scratch, unet, direction, size)
        return query_loss(context, scratch, query)

    norm = float(torch.stack([step.square().sum() for step in direction.values()]).sum().sqrt())
    low, high = 0.0, 1e-3 / norm if norm else 0.0
    doublings = 0
    while norm and loss_after(high) < wanted and doublings < 60:
        low, high, doublings = high, 2 * high, doublings + 1
    if not norm or doublings == 60:
        raise MethodFailed(
            f"The loss of query '{query.id}' does not reach {wanted:.4g} along the direction of unlearning; "
            "give a smaller query_rise, or a step_size and query_rise=0."
        )
    while high - low > high / 500:
        middle = (low + high) / 2
        low, high = (middle, high) if loss_after(middle) < wanted else (low, middle)
    return high


def query_loss(context: AttributionContext, unet: nn.Module, query: Query) -> float:
    """L(ẑ, θ) in the query's region, at 100 timesteps, with noise of its own: not the gradient's, nor the metric's."""
    model = context.model
    timesteps = torch.arange(0, model.config.num_timesteps, max(1, model.config.num_timesteps // 100))
    shape = (len(timesteps), *model.latent_shape)
    noise = seeds.normal(shape, "unlearning-query-loss", context.seed, query.noise_key)
    inputs = _query_inputs(context, query, timesteps, noise)

    @torch.no_grad()
    def losses_of(rows: Tensor) -> Tensor:
        return model.losses(*(part[rows] for part in inputs), unet=unet, region=query.region)

    return float(torch.cat(parallel(losses_of, torch.arange(len(timesteps)).split(LOSSES_AT_ONCE))).mean())


def query_gradient(
    context: AttributionContext, unet: nn.Module, query: Query, selection: str, num_draws: int, step: int
) -> Gradients:
    """∇L(ẑ, θ) averaged over ``num_draws`` draws of (noise, timestep), timesteps without repeats inside a batch.

    L is the mean in the query's region (``bench.diffusion.regions``).
    """
    model = context.model

    def part_gradient(draws: Tensor) -> Gradients:
        stream = seeds.generator("query-gradient", context.seed, query.noise_key, step, int(draws[0]))
        timesteps = torch.from_numpy(stream.permutation(model.config.num_timesteps)[: len(draws)])
        noise = torch.from_numpy(stream.standard_normal((len(draws), *model.latent_shape), dtype=np.float32))
        own = differentiable_copy(unet, selection)
        inputs = _query_inputs(context, query, timesteps, noise)
        model.losses(*inputs, unet=own, region=query.region).sum().backward()
        weights = select_weights(own, selection)
        return {name: weight.grad.double().cpu() for name, weight in weights.items() if weight.grad is not None}

    parts = parallel(part_gradient, torch.arange(num_draws).split(DRAWS_AT_ONCE))
    gradient = {name: torch.stack([part[name] for part in parts]).sum(0) / num_draws for name in parts[0]}
    return {name: value.to(model.device) for name, value in gradient.items()}


def _query_inputs(
    context: AttributionContext, query: Query, timesteps: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments of ``DiffusionModel.losses`` for a query at several timesteps."""
    state = context.model.text_encoder.encode([query.prompt])
    inputs = (query.latent.expand_as(noise), state.expand(len(noise), -1, -1), timesteps, noise)
    latents, states, times, noise = (part.to(context.model.device) for part in inputs)
    return latents, states, times, noise
