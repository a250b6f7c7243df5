"""MAGIC: the exact derivative of the query's loss through the whole training, the ceiling of what can be told from it.

    D_i = d L(ẑ, A(D, w, v)) / d w_i  at w = 1, v = 0     w_i: the weight of image i's loss wherever training draws it
    E_i = d L(ẑ, A(D, w, v)) / d v_i                      v_i: that of the images which these draws go to without i
    τ(ẑ, z_i) = E_i − D_i

Removed, an image has weight 0, and this harness gives its draws to others, with their timesteps and noises. So τ is
the predicted rise of the query's loss, to first order. L is the loss that ``loss_change`` measures, with
its noises and timesteps, of the model that judges removals, which is trained with other draws than θ0: the derivative
is of that training (``magic:original`` takes θ0's own instead). It goes through AdamW, clipping and the running average
of the weights (``bench.attribution.metagradients``).

It is a ceiling, not a method: it reads the training itself, all its draws included, which nobody has of a model that
others trained; and it knows the noise of the loss that is measured. The derivative is exact, the prediction is not:
it takes the removal of many images for a sum of small changes.

Reference: Ilyas & Engstrom, arXiv 2504.16430. OURS: redirected draws (theirs are left out), a diffusion model's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.metagradients import Steps, WithWeights, replayed
from bench.contracts import CEILING, AttributionContext, Method
from bench.diffusion.losses import query_loss_inputs
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.errors import InvalidInput, MethodFailed, Unavailable
from bench.registry import register_method

TIMESTEPS_AT_ONCE = 50
SAME = 1e-3
"""Share of the weights' norm by which the replayed model may differ, on a machine that rounds otherwise."""


@register_method
@dataclass(frozen=True, kw_only=True)
class Magic(Method):
    """The derivative of the query's loss through the training.

    Attributes:
        training: which is differentiated: the one whose removals are measured, "judge", or that of θ0, "original".
        timestep_stride: of the query's loss, from 0 on; 5 as it is measured.
    """

    name: ClassVar[str] = "magic"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "the exact derivative of the query's loss through the whole training"
    role: ClassVar[str] = CEILING
    needs: ClassVar[str] = "the training itself: replayed twice for all queries, and several times as long for each"
    self_rank: ClassVar[str] = "the training's own draws decide how much an image counted, even for itself"
    honours_regions: ClassVar[bool] = True
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"original": {"training": "original"}})

    training: str = "judge"
    timestep_stride: int = 5

    def __post_init__(self) -> None:
        if self.training not in ("judge", "original"):
            raise InvalidInput(f"magic: training='{self.training}'; expected judge or original.")
        if self.timestep_stride < 1:
            raise InvalidInput(f"magic: timestep_stride={self.timestep_stride}; expected 1 or more.")

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """The predicted rise of the query's loss without each image."""
        training = context.trainings.get(self.training)
        if training is None:
            raise Unavailable("how the model was trained is not known here, and magic does the training again")
        if training.recipe.precision != "float32":
            raise Unavailable(
                f"the model was trained in {training.recipe.precision}, and magic does it again in float32"
            )
        device = context.model.device
        replay = replayed(training, device, context.progress)
        trained = replay.run.average.clone()
        if self.training == "original":
            _check_same(trained, context.model)
        slopes = [self.slope(context, query, trained) for query in queries]
        own, others = replay.derivatives(Steps(training, device), slopes, context.progress).unbind(1)
        rise = others - own
        place = {image: index for index, image in enumerate(training.ids)}
        return rise[:, [place[image] for image in context.dataset.ids]].float()

    def slope(
        self, context: AttributionContext, query: Query, trained: Float[Tensor, " weights"]
    ) -> Float[Tensor, " weights"]:
        """∇L(ẑ) by the trained weights, in the query's region."""
        model, weights = context.model, trained.clone().requires_grad_(True)
        timesteps = range(0, model.config.num_timesteps, self.timestep_stride)
        inputs = query_loss_inputs(model, query, timesteps, context.seed)
        total = torch.zeros_like(trained, dtype=torch.float64)
        for part in torch.arange(len(timesteps)).split(TIMESTEPS_AT_ONCE):
            unet = WithWeights(model.unet, weights)
            losses = model.losses(*(each[part] for each in inputs), unet=unet, region=query.region)
            total += torch.autograd.grad(losses.sum() / len(timesteps), weights)[0].double()
        return total


def _check_same(trained: Float[Tensor, " weights"], model: DiffusionModel) -> None:
    """Raise MethodFailed where the replay ended elsewhere than ``model``."""
    expected = torch.cat([weight.detach().flatten() for weight in model.unet.parameters()])
    apart = float((trained - expected).norm() / expected.norm())
    if not apart <= SAME:
        raise MethodFailed(
            f"magic: the replayed training ended {apart:.2g} of the weights' norm away from the model; at most {SAME} "
            "is expected. The model was trained on another machine or by another version: train it again here."
        )
