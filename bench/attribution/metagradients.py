"""Derivatives through a whole training: of a function of the trained weights by the weight of every training image.

A training is a chain of steps x_{s+1} = step(x_s, w), with x the weights, AdamW's two moments and the running average
of the weights, and w the weight of each image's loss, all 1. The chain is gone through backwards: the adjoint of
x_{s+1} becomes that of x_s, and what it says of w is added up. For step s with gradient g of the batch's loss,

    ĝ = g · min(1, clip / ‖g‖)      m' = β₁ m + (1 − β₁) ĝ      v' = β₂ v + (1 − β₂) ĝ²
    θ' = (1 − η λ) θ − η m̂ / (√v̂ + ε)                           a' = a + (1 − d)(θ' − a)

so the adjoint of g, taken back through these, is a direction p in the space of weights, and

    adjoint of θ  +=  ∇²L p          adjoint of w_i  +=  Σ over draws of i in the batch of  pᵀ∇ℓ / batch size

which one double backward pass gives together: both are gradients of pᵀ∇L. When an image is removed its draws go to
other images, with their timesteps and noises (``DrawStream``); so for each draw the derivative by the weight of the
image that it would go to is taken too, a loss that has the weight 0 in the training. States are made again from kept
ones, every √(number of steps) steps, by the trainer itself, whose draws are keyed: the replayed training is the
training.

Reference: Engstrom et al., "Optimizing ML training with metagradient descent", arXiv 2503.13751, and Ilyas & Engstrom,
"MAGIC: near-optimal data attribution for deep learning", arXiv 2504.16430. Written from the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import Draws, Training, TrainingRun

CLIP_EPSILON = 1e-6
"""Of ``torch.nn.utils.clip_grad_norm_``."""


class State(NamedTuple):
    """x, or its adjoint: flat vectors of one length."""

    weights: Tensor
    average: Tensor
    first: Tensor
    second: Tensor


class WithWeights(nn.Module):
    """A U-Net that runs with the weights of a flat vector."""

    def __init__(self, unet: nn.Module, weights: Float[Tensor, " weights"]) -> None:
        super().__init__()
        named = dict(unet.named_parameters())
        pieces = weights.split([parameter.numel() for parameter in named.values()])
        views = {name: piece.view_as(named[name]) for name, piece in zip(named, pieces, strict=True)}
        self.parts = unet, views  # in a tuple: not a submodule, whose weights would be looked for

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The U-Net's output."""
        return functional_call(*self.parts, args, kwargs)


class Steps:
    """The steps of a training as functions that can be differentiated, in any floating-point type.

    Args:
        training: whose steps.
        device: where.
        dtype: of the weights.
    """

    def __init__(self, training: Training, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.training, self.recipe, self.dtype = training, training.recipe, dtype
        self.model = DiffusionModel(training.config, seed=training.job.seed, device=device)
        for weight in self.model.unet.parameters():
            weight.data = weight.data.to(dtype)
        self.draws = training.draws(self.model)

    def start(self) -> State:
        """x_0."""
        weights = torch.cat([weight.detach().flatten() for weight in self.model.unet.parameters()])
        return State(weights, weights.clone(), torch.zeros_like(weights), torch.zeros_like(weights))

    def losses(self, weights: Float[Tensor, " weights"], draws: Draws) -> Float[Tensor, " batch"]:
        """What each draw adds to the loss of the batch, times the batch size."""
        data, device = self.training.data, self.model.device
        timesteps = draws.timesteps.to(device)
        inputs = [data.latents[draws.images, draws.mirrored], data.states_at(data.trained_rows(draws)), draws.noise]
        latents, states, noise = (part.to(device, self.dtype) for part in inputs)
        losses = self.model.losses(latents, states, timesteps, noise, unet=WithWeights(self.model.unet, weights))
        return losses * self.recipe.loss_weights(self.model, timesteps)

    def forward(
        self,
        state: State,
        step: int,
        shares: Float[Tensor, " batch"] | None = None,
        others: Float[Tensor, " batch"] | None = None,
    ) -> State:
        """x_{step+1} of x_step, where the draws' losses have the weights ``shares``, and ``others`` those instead."""
        weights = state.weights.detach().requires_grad_(True)
        draws = self.draws.at(step)
        losses = self.losses(weights, draws)
        loss = (losses if shares is None else losses * shares).mean()
        if others is not None:
            loss = loss + (self.losses(weights, self.draws.without_own(step, draws)) * others).mean()
        gradient = torch.autograd.grad(loss, weights)[0]
        rate, recipe = self._constants(step), self.recipe
        clipped = gradient * min(1.0, recipe.gradient_clip / (float(gradient.norm()) + CLIP_EPSILON))
        first = recipe.betas[0] * state.first + (1 - recipe.betas[0]) * clipped
        second = recipe.betas[1] * state.second + (1 - recipe.betas[1]) * clipped.square()
        move = first / rate.first / ((second / rate.second).sqrt() + recipe.epsilon)
        moved = state.weights * (1 - rate.learning * recipe.weight_decay) - rate.learning * move
        return State(moved, state.average + (1 - rate.decay) * (moved - state.average), first, second)

    def backward(
        self, state: State, after: State, step: int, adjoints: Sequence[State]
    ) -> tuple[list[State], Float[Tensor, "adjoints 2 batch"]]:
        """Adjoints of x_step, of those of x_{step+1}, and of the weight of each draw of the step and of its other.

        Args:
            state, after: x_step and x_{step+1}.
            step: its number.
            adjoints: of x_{step+1}, in float64.
        """
        weights = state.weights.detach().to(self.dtype).requires_grad_(True)
        own = self.draws.at(step)
        losses = torch.stack([self.losses(weights, each) for each in (own, self.draws.without_own(step, own))])
        shares = torch.tensor([[1.0], [0.0]]).to(losses).expand_as(losses).clone().requires_grad_(True)
        loss = (losses * shares).mean(1).sum()
        gradient = torch.autograd.grad(loss, weights, create_graph=True)[0]
        result, derivatives = [], []
        for number, adjoint in enumerate(adjoints):
            back, slope = self._through_update(state, after, step, gradient.detach().double(), adjoint)
            again = number + 1 < len(adjoints)
            curved, each = torch.autograd.grad(gradient @ slope.to(gradient), (weights, shares), retain_graph=again)
            result.append(back._replace(weights=back.weights + curved.double()))
            derivatives.append(each.double())
        return result, torch.stack(derivatives)

    def _through_update(
        self, state: State, after: State, step: int, gradient: Tensor, adjoint: State
    ) -> tuple[State, Tensor]:
        """The adjoint of x_step without what goes through the gradient, and the adjoint p of the gradient."""
        rate, (beta1, beta2) = self._constants(step), self.recipe.betas
        to_weights = adjoint.weights + (1 - rate.decay) * adjoint.average
        first, root = after.first.double() / rate.first, (after.second.double() / rate.second).sqrt()
        below = root + self.recipe.epsilon
        to_first = adjoint.first - rate.learning * to_weights / below / rate.first
        by_root = rate.learning * to_weights * first / below.square()
        slope = torch.where(root > 0, by_root / (2 * root * rate.second), 0)  # a weight that has never moved
        to_second = adjoint.second + slope
        norm = float(gradient.norm())
        scale = min(1.0, self.recipe.gradient_clip / (norm + CLIP_EPSILON))
        to_clipped = (1 - beta1) * to_first + 2 * (1 - beta2) * scale * gradient * to_second
        to_gradient = scale * to_clipped
        if scale < 1:
            to_gradient = to_gradient - scale * (gradient @ to_clipped) / (norm + CLIP_EPSILON) / norm * gradient
        back = State(
            to_weights * (1 - rate.learning * self.recipe.weight_decay),
            rate.decay * adjoint.average,
            beta1 * to_first,
            beta2 * to_second,
        )
        return back, to_gradient

    def _constants(self, step: int) -> _Constants:
        (beta1, beta2), number = self.recipe.betas, step + 1
        rate, decay = self.recipe.learning_rate_at(step), self.recipe.ema_decay_at(step)
        return _Constants(rate, 1 - beta1**number, 1 - beta2**number, decay)


class _Constants(NamedTuple):
    """Of one step: learning rate, bias corrections of the two moments, decay of the average."""

    learning: float
    first: float
    second: float
    decay: float


def replayed(training: Training, device: torch.device, progress: Callable[[int, int], None]) -> Replayed:
    """Do ``training`` again and keep a state every √(number of steps) steps."""
    run, total = training.run(device), training.recipe.num_steps
    stride, kept = math.ceil(math.sqrt(total)), []
    while not run.finished:
        if run.step % stride == 0:
            kept.append({name: value.clone() for name, value in run.checkpoint().items()})
        run.advance()
        progress(run.step, 3 * total)
    return Replayed(run, kept)


class Replayed(NamedTuple):
    """A training that was done again, at its end, and states on its way."""

    run: TrainingRun
    kept: Sequence[Mapping[str, Tensor]]

    def derivatives(
        self, steps: Steps, slopes: Sequence[Float[Tensor, " weights"]], progress: Callable[[int, int], None]
    ) -> Float[Tensor, "functions 2 images"]:
        """For each function of the trained model its derivatives by the weight of every image, and of its others.

        Args:
            steps: of the training.
            slopes: the functions' gradients by the trained weights (the running average).
            progress: called with the number of steps done and in all, the replay counted.

        Returns:
            The derivative by the weight of an image's loss wherever training draws it; and by the weight, 0 in the
            training, of the losses of the images that these draws go to when it is removed.
        """
        nothing = torch.zeros_like(slopes[0], dtype=torch.float64)
        adjoints = [State(nothing, slope.double(), nothing, nothing) for slope in slopes]
        total, end = steps.recipe.num_steps, steps.recipe.num_steps
        by_image = torch.zeros(len(slopes), 2, len(steps.training.ids), dtype=torch.float64)
        for checkpoint in reversed(self.kept):
            self.run.restore(checkpoint)
            states = [_state(self.run)]
            while self.run.step < end:
                self.run.advance()
                states.append(_state(self.run))
            start = int(checkpoint["step"])
            for step in reversed(range(start, end)):
                adjoints, found = steps.backward(states[step - start], states[step - start + 1], step, adjoints)
                by_image.index_add_(2, steps.draws.at(step).images, found.cpu())
                progress(total + 2 * (total - step), 3 * total)
            end = start
        return by_image


def _state(run: TrainingRun) -> State:
    """A copy of where ``run`` is."""
    kept = run.checkpoint()
    nothing = torch.zeros_like(kept["weights"])
    parts = kept["weights"], kept["average"], kept.get("adamw.exp_avg", nothing), kept.get("adamw.exp_avg_sq", nothing)
    return State(*(part.clone() for part in parts))
