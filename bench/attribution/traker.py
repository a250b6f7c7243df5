"""The published package of TRAK, ``traker``, behind the same contract: its gradients, projection, kernel and scores.

The package sees each side of a training image as an example of its own and the loss, averaged over the same draws as
``trak`` takes, as the output. Its ridge is absolute and of all sides, so λ becomes

    λ · Σ ‖φ‖² / rank      φ: the projected gradients of all sides,   rank = min(d, 2N)

and its scores have another scale for each query's kernel, which changes no rank.

Reference: Park et al., arXiv 2303.14186; package ``traker`` (extra ``[trak]``), imported on use.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attribution.gradients import differentiable_copy
from bench.attribution.influence import GRADIENT_BYTES, GRAM_ROWS, InfluenceMethod, image_rows
from bench.attribution.projection import Projection
from bench.contracts import AttributionContext
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.regions import Region
from bench.diffusion.selections import select_weights
from bench.foundation import seeds

if TYPE_CHECKING:
    from trak.projectors import AbstractProjector

MOST_SIDES = 256
"""Examples given to the package at once; fewer where their gradients would not fit."""


def installed() -> str:
    """The version of the package, "" where it is not installed."""
    try:
        return version("traker")
    except PackageNotFoundError:
        return ""


class _WithWeights(nn.Module):
    """A U-Net that runs with given weights."""

    def __init__(self, unet: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parts = (unet, {**weights, **buffers})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The U-Net's output."""
        return torch.func.functional_call(*self.parts, args, kwargs)


class MeanLoss:
    """The package's view of an output: the loss of one example, averaged over its draws.

    Attributes:
        diffusion: the model.
        region: in which the loss takes its mean; all of the image where that is None.
    """

    def __init__(self, diffusion: DiffusionModel, region: Region | None = None) -> None:
        self.diffusion, self.region = diffusion, region

    def get_output(self, unet, weights, buffers, latents, states, timesteps, noise):  # type: ignore[no-untyped-def]
        """Mean loss of the rows of one example."""
        own = _WithWeights(unet, weights, buffers)
        return self.diffusion.losses(latents, states, timesteps, noise, unet=own, region=self.region).mean()

    def get_out_to_loss_grad(self, model, weights, buffers, batch):  # type: ignore[no-untyped-def]
        """The output is the loss."""
        return torch.ones(len(batch[0]), 1)


def traker(
    model: DiffusionModel,
    size: int,
    folder: str,
    *,
    dimension: int,
    weights: str = "all",
    seed: int = 0,
    projector: AbstractProjector | None = None,
) -> Any:
    """A TRAKer of a copy of ``model`` for ``size`` training examples, ready to featurize.

    Args:
        model: whose U-Net.
        size: number of training examples.
        folder: where the package keeps its files.
        dimension: of the projection.
        weights: whose gradients, a name in ``WEIGHT_SELECTIONS``.
        seed: of the package's own projection.
        projector: another one.
    """
    from trak import TRAKer

    unet, names = differentiable_copy(model.unet, "all"), list(select_weights(model.unet, weights))
    made = TRAKer(
        unet, MeanLoss(model), size, save_dir=folder, device=str(model.device), proj_dim=dimension,
        use_half_precision=False, logging_level=logging.ERROR, grad_wrt=None if weights == "all" else names,
        projector_seed=seed, projector=projector,
    )  # fmt: skip
    made.load_checkpoint(unet.state_dict(), model_id=0)
    return made


def same_projection(sizes: Mapping[str, int], dimension: int, *key: seeds.KeyPart) -> AbstractProjector:
    """This project's projection for the package, so that nothing but the implementation differs.

    Args:
        sizes: number of weights of each parameter, by name.
        dimension: of the projection.
        key: of its random numbers.
    """
    from trak.projectors import AbstractProjector

    class Ours(AbstractProjector):  # type: ignore[misc]
        def __init__(self) -> None:
            self.own, self.proj_dim, self.proj_type = Projection(sizes, dimension, *key), dimension, "rademacher"

        def project(self, grads: Tensor | Mapping[str, Tensor], model_id: int) -> Tensor:
            if isinstance(grads, Tensor):
                grads = dict(zip(sizes, grads.split(list(sizes.values()), 1), strict=True))
            return self.own({name: part.flatten(1) for name, part in grads.items()})

        def free_memory(self) -> None:
            """Nothing is kept but the projection."""

    return Ours()


def traker_scores(
    method: InfluenceMethod,
    context: AttributionContext,
    model: DiffusionModel,
    queries: Sequence[Query],
    *,
    seed: int = 0,
    projector: AbstractProjector | None = None,
) -> Float[Tensor, "queries images 2"]:
    """The package's scores of every query, image and side, with the settings of ``method``.

    Args:
        method: whose settings and draws.
        context: of the study.
        model: of the ensemble.
        queries: rows of the result.
        seed: of the package's own projection.
        projector: instead of the package's own.
    """
    sides = 2 * len(context.dataset)
    with tempfile.TemporaryDirectory() as folder:
        peer = traker(
            model, sides, folder, dimension=method.projection_dim, weights=method.weights, seed=seed,
            projector=projector,
        )  # fmt: skip
        for batch in _batches(method, context, model, sides):
            peer.featurize(batch=batch, num_samples=len(batch[0]))
            context.progress(min(sides, int(peer.saver.current_store["is_featurized"].sum())), sides)
        kept = torch.from_numpy(peer.saver.current_store["grads"]).split(GRAM_ROWS)
        squares = sum(float(part.double().square().sum()) for part in kept)
        peer.score_computer.lambda_reg = method.regularization * squares / min(method.projection_dim, sides)
        with redirect_stderr(io.StringIO()):  # its own progress bars
            peer.finalize_features()
        peer.start_scoring_checkpoint("queries", peer.model.state_dict(), model_id=0, num_targets=len(queries))
        for query in queries:
            peer.task.region = query.region
            rows = [part.unsqueeze(0).to(model.device) for part in method.query_rows(context, query)]
            peer.score(batch=rows, num_samples=1)
        with redirect_stderr(io.StringIO()):
            found = torch.from_numpy(peer.finalize_scores(exp_name="queries").copy())
    return found.T.reshape(len(queries), -1, 2).double()


def _batches(
    method: InfluenceMethod, context: AttributionContext, model: DiffusionModel, sides: int
) -> Iterator[list[Tensor]]:
    """The draws of all sides, some sides at a time."""
    rows_of = image_rows(context, model, method.num_timesteps)
    weights = sum(weight.numel() for weight in select_weights(model.unet, method.weights).values())
    for chosen in torch.arange(sides).split(max(1, min(MOST_SIDES, GRADIENT_BYTES // (4 * weights)))):
        columns = zip(*(rows_of(side) for side in chosen.tolist()), strict=True)
        yield [torch.stack(column).to(model.device) for column in columns]
