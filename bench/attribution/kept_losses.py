"""The training set's losses, kept among the artifacts that methods share."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from bench.contracts import AttributionContext
from bench.diffusion.losses import training_set_losses
from bench.diffusion.model import DiffusionModel
from bench.foundation.digests import digest_of


def kept_losses(
    context: AttributionContext, model: DiffusionModel, timesteps: Sequence[int], member: int = 0
) -> Float[Tensor, "images 2 timesteps"]:
    """The training set's losses under ``model``, computed once for all queries and methods.

    Args:
        context: of the method.
        model: number ``member`` of the ensemble; 0 is θ0.
        timesteps: of the losses.
        member: see ``model``.
    """

    def build() -> dict[str, Tensor]:
        ids, progress = context.dataset.ids, context.progress
        unets = [model.unet]
        losses = training_set_losses(model, unets, context.data, ids, timesteps, seed=context.seed, progress=progress)
        return {"losses": losses[0]}

    parts = [list(timesteps), member] if member else [list(timesteps)]
    return context.cached(f"losses-{digest_of(parts)}", build)["losses"]
