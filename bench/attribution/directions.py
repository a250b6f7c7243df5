"""Influence by gradients that are not projected: the query's gradient becomes a direction in the space of weights.

    τ(ẑ, z_i) = max over flips of  d(∇L(ẑ, θ0))ᵀ ∇L(z_i, θ0)        d = H⁻¹ for some curvature H

Without image i the weights move by H⁻¹∇L(z_i) / N, and the query's loss by τ / N to first order: higher = more
influential. The gradient of a training image is a mean over stratified draws of (timestep, noise) keyed by the image,
those of ``bench.attribution.influence``; all of them are made anew whenever they are needed, and none is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.gradients import Gradients
from bench.attribution.influence import checked, image_rows, over_samples
from bench.attribution.sides import check_flips, over_sides
from bench.attribution.unlearning import query_gradient
from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.diffusion.selections import check_selection
from bench.errors import InvalidInput

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DirectionMethod(Method, ABC):
    """A method that compares gradients by the inverse of a curvature; a subclass says which.

    Attributes:
        weights: whose gradients: "all", "cross-attn-kv", "cross-attn" or "attn".
        num_timesteps: draws of (timestep, noise) for each image and side.
        num_query_draws: the same for a query.
        damping: what is added to the curvature, as a share of its mean.
        flips: "max" or "mean" over an image and its mirror image.
    """

    honours_regions: ClassVar[bool] = True

    weights: str = "all"
    num_timesteps: int = 10
    num_query_draws: int = 1000
    damping: float = 0.1
    flips: str = "max"

    def __post_init__(self) -> None:
        check_flips(self.name, self.flips)
        check_selection(self.weights)
        if min(self.num_timesteps, self.num_query_draws) < 1 or not 0 < self.damping < float("inf"):
            raise InvalidInput(
                f"{self.name}: {self}: num_timesteps and num_query_draws of 1 or more, a damping above 0 are expected."
            )

    @abstractmethod
    def directions(self, context: AttributionContext, gradients: Sequence[Gradients]) -> list[Gradients]:
        """d(∇L(ẑ)) of every query."""

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """The inner product with each image's gradient, the larger of an image's two sides."""
        unet = context.model.unet
        asked = [query_gradient(context, unet, query, self.weights, self.num_query_draws, 0) for query in queries]
        directions = self.directions(context, asked)

        def products(_: Tensor, gradients: Gradients) -> Tensor:
            return sum_over_layers(layer_products(gradients, directions))

        found = checked(torch.cat(self.over_images(context, products), 1).T).T
        sides = (found / self.num_timesteps).view(len(queries), len(context.dataset), 2).float()
        return over_sides(sides, self.flips)

    def over_images(self, context: AttributionContext, visit: Callable[[Tensor, Gradients], T]) -> list[T]:
        """What ``visit`` makes of the summed gradients of some sides of images after the others, in their order."""
        rows = image_rows(context, context.model, self.num_timesteps)
        return over_samples(
            context.model, "loss", self.weights, rows, 2 * len(context.dataset), visit,
            group=self.num_timesteps, progress=context.progress,
        )  # fmt: skip


def layer_of(parameter: str) -> str:
    """The layer that ``parameter`` belongs to: a weight and its bias are one."""
    return parameter.rpartition(".")[0]


def layer_products(
    gradients: Gradients, directions: Sequence[Gradients]
) -> dict[str, Float[Tensor, "queries samples"]]:
    """The inner product of each direction with each sample's gradient, layer by layer, in float64 on the CPU."""
    products: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        rows = torch.stack([direction[name].to(gradient).flatten() for direction in directions])
        part = (rows @ gradient.flatten(1).T).double().cpu()
        layer = layer_of(name)
        products[layer] = products[layer] + part if layer in products else part
    return products


def squared_norms(gradients: Gradients) -> dict[str, Tensor]:
    """‖g‖² of each layer (samples), in float64 on the CPU."""
    norms: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        part = gradient.double().flatten(1).square().sum(1).cpu()
        norms[layer_of(name)] = norms[layer_of(name)] + part if layer_of(name) in norms else part
    return norms


def sum_over_layers(parts: dict[str, Tensor]) -> Tensor:
    """The sum of the layers' tensors."""
    return torch.stack(list(parts.values())).sum(0)
