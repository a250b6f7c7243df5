"""DAS, the Diffusion Attribution Score: how much the predicted noise at the query changes without an image.

    τ(ẑ, z_i) = E ( ε_θ(x̂_t) − ε_θ∖i(x̂_t) )²  ≈  ( g_qᵀ K⁻¹ g_i · r_i / (1 − h_i) )²

    g = P( mean over timesteps and noises of ∇_θ mean over elements of ε_θ )      K = GᵀG + λI
    r_i = mean over timesteps of √L_t(z_i, θ)                                    h_i = ½ g_iᵀ K⁻¹ g_i

and the larger of both sides of an image, averaged over models. Reference: Lin et al., arXiv 2410.18639 (ICLR 2025),
section 4: the predictor is linearised in θ, θ∖i comes from one Newton step on the squared error, the Sherman-Morrison
formula takes image i out of the kernel, gradients and residuals are averaged over timesteps before they are multiplied.
h_i is the leverage of one side of an image; a side has weight ½ in K (``bench.attribution.influence``), so h_i is
below 1.

What the paper leaves open: ε_θ and its residual have many elements. As in the released code, the output is the mean
of the elements and the residual a root loss. Unlike that code, gradients are not normalised at each timestep and
residuals not for each image (which makes them nearly equal). With the vectors themselves, as random projections of ε_θ
estimate them, the square adds up the noise of few draws: ``docs/decisions.md``. Other deviations: those of ``trak``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.influence import InfluenceMethod, Kernel
from bench.attribution.kept_losses import kept_losses
from bench.attribution.projection import AUTO
from bench.contracts import AttributionContext
from bench.diffusion.losses import strided_timesteps
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Das(InfluenceMethod):
    """Change of the predicted noise at the query when an image is left out.

    Attributes:
        timestep_stride: of the timesteps of the residuals, from half a stride on.
    """

    name: ClassVar[str] = "das"
    summary: ClassVar[str] = "change of the predicted noise at the query when an image is left out, to first order"
    output: ClassVar[str] = "mean"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"auto": {"projection": AUTO}})
    self_rank: ClassVar[str] = "an image of larger residual may move the prediction at the query further than its own"

    timestep_stride: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timestep_stride < 1:
            raise InvalidInput(f"das: timestep_stride={self.timestep_stride}; expected 1 or more.")

    def member_scores(
        self, context: AttributionContext, member: int, model: DiffusionModel, queries: Sequence[Query]
    ) -> Float[Tensor, "queries images 2"]:
        """τ of every query, image and side under one model of the ensemble."""
        training = self.training_features(context, member, model, self.output)
        kernel = self.kernel_of(model, training)
        asked = self.query_features(context, member, model, queries)
        return output_change(kernel, asked, training["features"], self.residuals(context, member, model))

    def residuals(self, context: AttributionContext, member: int, model: DiffusionModel) -> Float[Tensor, "images 2"]:
        """r_i of every image and side; the losses of θ0 are those that ``ours`` needs too."""
        timesteps = strided_timesteps(model, self.timestep_stride)
        return kept_losses(context, model, timesteps, member).sqrt().mean(-1)


def output_change(
    kernel: Kernel,
    asked: Float[Tensor, "queries d"],
    features: Float[Tensor, "images sides d"],
    residuals: Float[Tensor, "images sides"],
) -> Float[Tensor, "queries images sides"]:
    """( g_qᵀ K⁻¹ g_i · r_i / (1 − h_i) )²."""
    solved = kernel.solve(features.flatten(0, 1)).cpu()
    leverage = (solved * features.flatten(0, 1).double()).sum(1).view(residuals.shape) / features.shape[1]
    changes = (asked.double() @ solved.T).view(len(asked), *residuals.shape)
    return torch.square(changes * residuals / (1 - leverage))
