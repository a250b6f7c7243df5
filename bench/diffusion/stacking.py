"""Many models of one study trained at once: one optimizer step of all of them is one pass over stacked weights.

``train_stacked`` is a trainer as ``bench.diffusion.training.train_together`` is, for runs that differ in removed images
and seed. Weights, averages and moments of M models are the rows of M × P matrices, the U-Net runs under
``torch.func.vmap`` (convolutions become one grouped convolution, linear layers one batched product), and AdamW and the
averages are elementwise. Clipping takes the norm of each row. A small model leaves a GPU idle between kernels; a stack
needs as many kernels for M models as for two.

Rounding differs from one-by-one training in the last digits, so a recipe that stacks is another version of its study
(``Recipe.stack`` is in the digest). A stack always has M rows, the last run's repeated where there are fewer: a model's
bits depend neither on its row nor on its companions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bench.diffusion.training import TrainingRun, views
from bench.errors import InvalidInput

ALIGNED = 64
"""Rows begin at multiples of so many numbers: where a row lies does not change how it is computed."""


def aligned(rows: Sequence[Float[Tensor, " weights"]]) -> Float[Tensor, "rows width"]:
    """``rows`` as a matrix, each with zeros to a multiple of ``ALIGNED``."""
    return nn.functional.pad(torch.stack(list(rows)), (0, -len(rows[0]) % ALIGNED))


class Stack:
    """Some runs at the same step, advanced together; each run's own weights, average and moments are views of a row.

    Args:
        runs: of one study, at one step; as many as there are rows, or fewer.
        size: rows; those beyond the runs repeat the last. None for as many as the recipe stacks.
        place: memory for the weights, of the shape of ``weights``; None for new memory.

    Attributes:
        weights, averages: M × width, the weights of a model and zeros to a multiple of ``ALIGNED``.
    """

    def __init__(self, runs: Sequence[TrainingRun], *, size: int | None = None, place: Tensor | None = None) -> None:
        most = runs[0].recipe.stack if size is None else size
        if len({run.step for run in runs}) != 1 or not 1 <= len(runs) <= most:
            raise InvalidInput(
                f"{len(runs)} runs at steps {sorted({run.step for run in runs})} cannot be one stack: 1 to "
                f"{most} runs at one step are expected."
            )
        self.runs, self.first, self.recipe = list(runs), runs[0], runs[0].recipe
        self.rows = [*runs, *[runs[-1]] * (most - len(runs))]
        weights = aligned([run.weights.detach() for run in self.rows])
        self.weights = nn.Parameter(weights if place is None else place.copy_(weights))
        self.averages = aligned([run.average for run in self.rows])
        self.optimizer = self.recipe.optimizer(self.weights)
        self._adopt()

    def _adopt(self) -> None:
        """Take over the moments, and make the runs' tensors views of the rows."""
        step = torch.tensor(float(self.first.step), device=self.weights.device)
        moments = [run.optimizer.state.get(run.weights) or {} for run in self.rows]
        state: dict[str, Tensor] = {"step": step}
        for name in ("exp_avg", "exp_avg_sq"):
            nothing = torch.zeros_like(self.first.average)
            state[name] = aligned([each.get(name, nothing) for each in moments])
        self.optimizer.state[self.weights] = state
        own_weights = len(self.first.average)
        for row, run in enumerate(self.runs):
            run.weights.data, run.average = self.weights.data[row, :own_weights], self.averages[row, :own_weights]
            own = {name: value if name == "step" else value[row, :own_weights] for name, value in state.items()}
            run.optimizer.state[run.weights] = own

    @cached_property
    def named(self) -> dict[str, Tensor]:
        """The weights by name, M × the weight's shape, views of the matrix."""
        parameters = dict(self.first.model.unet.named_parameters())
        own = views(self.weights.data, list(parameters.values()))
        return {name: view.requires_grad_() for name, view in zip(parameters, own, strict=True)}

    def advance(self) -> list[float]:
        """Do one optimizer step; returns the mean loss of each run, NaN or infinite for one that has diverged."""
        step, recipe = self.first.step, self.recipe
        losses, gradient = self.gradient(step)
        norms = torch.linalg.vector_norm(gradient, dim=1)
        self.weights.grad = gradient.mul_((recipe.gradient_clip / (norms + 1e-6)).clamp(max=1.0)[:, None])
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        for run in self.runs:
            run.is_whole = False
        self.optimizer.step()
        self.averages.lerp_(self.weights.detach(), 1 - recipe.ema_decay_at(step))
        for run in self.runs:
            run.step += 1
            run.is_whole = True
        found: list[float] = losses[: len(self.runs)].tolist()
        return found

    def gradient(self, step: int) -> tuple[Float[Tensor, " stack"], Float[Tensor, "stack width"]]:
        """Mean losses of all rows, and their gradients."""
        own = [_inputs(run, step) for run in self.runs]
        inputs = [torch.stack([*part, *[part[-1]] * (len(self.rows) - len(own))]) for part in zip(*own, strict=True)]
        model, unet = self.first.model, self.first.model.unet

        def losses(weights: Mapping[str, Tensor], *given: Tensor) -> Tensor:
            return model.losses(*given, unet=_WithWeights(unet, weights))

        with self.recipe.autocast(model.device):
            found: Tensor = vmap(losses)(self.named, *inputs)
        scale = self.recipe.loss_weights(model, inputs[2])
        gradients = torch.autograd.grad((found * scale).mean(1).sum(), list(self.named.values()))
        whole = torch.cat([each.flatten(1) for each in gradients], 1)
        return found.detach().mean(1), nn.functional.pad(whole, (0, self.weights.shape[1] - whole.shape[1]))


class _WithWeights(nn.Module):
    """``unet`` called with other weights."""

    def __init__(self, unet: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._inside = unet, dict(weights)  # in a tuple: not a part of this module

    def forward(self, *inputs: Tensor, **named: Any) -> Any:
        """As the U-Net's."""
        return functional_call(*self._inside, inputs, named)


def _inputs(run: TrainingRun, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, text states, timesteps and noise of the run's batch, on its device."""
    draws, data, device = run.draws.at(step), run.data, run.model.device
    latents = data.latents[draws.images, draws.mirrored]
    parts = (latents, data.states_at(data.trained_rows(draws)), draws.timesteps, draws.noise)
    latents, states, timesteps, noise = (part.to(device) for part in parts)
    return latents, states, timesteps, noise


def train_stacked(runs: Sequence[TrainingRun]) -> Iterator[list[float]]:
    """Advance ``runs`` in one stack until all are finished; yields their losses after each step.

    One that diverges has a loss that is not finite from then on, and harms no other.
    """
    stack = Stack(runs)
    while not stack.first.finished:
        yield stack.advance()
