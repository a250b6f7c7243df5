"""DataInf: influence with the order of a mean and an inverse exchanged, so that the inverse has a closed form.

Layer by layer, with g_i the gradient of a training image (one for each of its n = 2 N sides) and v the query's,

    H⁻¹ = ( 1/n Σ_i g_i g_iᵀ + λ I )⁻¹  ≈  1/n Σ_i ( g_i g_iᵀ + λ I )⁻¹  =  1/(nλ) Σ_i ( I − g_i g_iᵀ / (λ + ‖g_i‖²) )

    τ(ẑ, z_k) = max over flips of  Σ_layers 1/λ ( vᵀg_k − 1/n Σ_i (vᵀg_i) (g_iᵀg_k) / (λ + ‖g_i‖²) )

by the Sherman-Morrison formula. λ is a share, ``damping``, of the mean squared gradient of one weight of the layer, as
in the paper (0.1). The exchange has an error of the square of the layer's size, small for adapters of low rank and not
for whole layers, which the paper says too: on MSCOCO it was near random (arXiv 2406.09408, NeurIPS version, table 2).

Reference: Kwon et al., arXiv 2310.00902 (ICLR 2024), equation 5 and section 3. Written from the paper. Gradients are
not projected: three passes over the training set for all queries together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.attribution.directions import DirectionMethod, layer_of, layer_products, squared_norms
from bench.attribution.gradients import Gradients
from bench.contracts import AttributionContext
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class DataInf(DirectionMethod):
    """Influence by a mean of inverses."""

    name: ClassVar[str] = "datainf"
    summary: ClassVar[str] = "influence with the mean of inverses in place of the inverse of a mean, layer by layer"

    def directions(self, context: AttributionContext, gradients: Sequence[Gradients]) -> list[Gradients]:
        """1/λ ( v − 1/n Σ_i (vᵀg_i) g_i / (λ + ‖g_i‖²) ) of every query, layer by layer."""
        draws, count = self.num_timesteps, 2 * len(context.dataset)
        sizes = layer_sizes(gradients[0])

        def measure(_: Tensor, found: Gradients) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return squared_norms(found), layer_products(found, gradients)

        measured = self.over_images(context, measure)
        norms = {layer: torch.cat([part[0][layer] for part in measured]) / draws**2 for layer in sizes}
        products = {layer: torch.cat([part[1][layer] for part in measured], 1) / draws for layer in sizes}
        added = {layer: self.damping * float(norms[layer].mean()) / size for layer, size in sizes.items()}
        shares = {layer: products[layer] / (added[layer] + norms[layer]) / count / draws for layer in sizes}

        def outer(samples: Tensor, found: Gradients) -> list[Gradients]:
            return [
                {name: _weighted(part, shares[layer_of(name)][row, samples]) for name, part in found.items()}
                for row in range(len(gradients))
            ]

        means = self.over_images(context, outer)
        return [
            {
                name: (v - torch.stack([part[row][name] for part in means]).sum(0).view_as(v)) / added[layer_of(name)]
                for name, v in asked.items()
            }
            for row, asked in enumerate(gradients)
        ]


def _weighted(gradient: Tensor, weights: Tensor) -> Tensor:
    """Σ_i weights_i g_i."""
    return (weights.to(gradient) @ gradient.flatten(1)).double()


def layer_sizes(gradients: Gradients) -> dict[str, int]:
    """Number of weights of each layer."""
    sizes: dict[str, int] = {}
    for name, gradient in gradients.items():
        sizes[layer_of(name)] = sizes.get(layer_of(name), 0) + gradient.numel()
    return sizes
