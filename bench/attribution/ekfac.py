"""EK-FAC: curvature that is block-diagonal over layers, and diagonal in each layer's Kronecker eigenbasis.

    A = E[a aᵀ] = U_A D_A U_Aᵀ,   S = E[g gᵀ] = U_S D_S U_Sᵀ        a: a layer's input, g: the gradient at its output
    Λ = E[(U_Sᵀ G U_A)²]                                          G = Σ g aᵀ: one draw's gradient of the weight
    F⁻¹ ∇ = U_S ( U_Sᵀ ∇ U_A / (Λ + damping · mean Λ) ) U_Aᵀ

of the gradients of the training loss (the empirical Fisher), or of outputs sampled from the model's own predictions
(the generalised Gauss-Newton matrix). References: George et al., 2018, arXiv 1806.03884; Grosse et al., 2023, arXiv
2308.03296; what is done with layers that share weights: ``methods/ours_ekfac.py``.
"""

from __future__ import annotations

import torch
from torch import nn

from bench.attribution.fisher import LOSS, PREDICTION, Losses, mean_over_draws, newton_direction
from bench.attribution.gradients import Gradients, kronecker_sums, per_sample_gradients
from bench.contracts import AttributionContext
from bench.foundation.digests import digest_of

KEPT_AS = {LOSS: "ekfac", PREDICTION: "ekfac-ggn"}


def ekfac_factors(
    context: AttributionContext, selection: str, num_draws: int, output: str = LOSS
) -> tuple[Gradients, Gradients]:
    """The bases U_A and U_S of each layer, and Λ in them, kept for all queries and methods; of the base model where the
    model was fine-tuned.

    Args:
        context: of the method.
        selection: of weights.
        num_draws: in each of the two passes, which see the same draws.
        output: whose gradients: ``LOSS`` or ``PREDICTION`` of ``bench.attribution.fisher``.
    """
    context = context.base or context
    key = digest_of([selection, num_draws])

    def factors() -> Gradients:
        return eigenbases(mean_over_draws(context, selection, num_draws, kronecker_sums, output))

    bases = context.cached(f"{KEPT_AS[output]}-basis-{key}", factors)

    def squares(unet: nn.Module, losses: Losses) -> Gradients:
        own = {name: basis.to(context.model.device) for name, basis in bases.items()}
        rotated = to_eigenbasis(per_sample_gradients(unet, losses), own)
        return {name: part.square().sum(0) for name, part in rotated.items()}

    def corrected() -> Gradients:
        return mean_over_draws(context, selection, num_draws, squares, output)

    return bases, context.cached(f"{KEPT_AS[output]}-eigenvalues-{key}", corrected)


def eigenbases(factors: Gradients) -> Gradients:
    """The eigenvectors of each of the symmetric ``factors``, as columns."""
    return {name: torch.linalg.eigh(factor)[1] for name, factor in factors.items()}


def ekfac_direction(gradients: Gradients, bases: Gradients, eigenvalues: Gradients, damping: float) -> Gradients:
    """U_S ( U_Sᵀ ∇ U_A / (Λ + damping · mean Λ) ) U_Aᵀ, for gradients with a batch dimension in front."""
    rotated = to_eigenbasis(gradients, bases)
    solved = {name: newton_direction(part, eigenvalues[name], damping) for name, part in rotated.items()}
    return from_eigenbasis(solved, bases, gradients)


def to_eigenbasis(gradients: Gradients, bases: Gradients) -> Gradients:
    """U_Sᵀ G U_A of each layer in ``bases``, and the gradients of other parameters as they are; in float64.

    Args:
        gradients: of the parameters by name, each with a batch dimension in front.
        bases: of ``eigenbases``.
    """
    rotated = {name: gradient.double() for name, gradient in gradients.items()}
    for layer in layers_of(bases):
        u_a, u_s = bases[f"{layer}.inputs"], bases[f"{layer}.outputs"]
        weight, bias = rotated.pop(f"{layer}.weight"), rotated.pop(f"{layer}.bias", None)
        matrix = weight.reshape(len(weight), len(u_s), -1)
        if bias is not None:
            matrix = torch.cat([matrix, bias.unsqueeze(-1)], -1)
        rotated[layer] = u_s.T @ matrix @ u_a
    return rotated


def from_eigenbasis(rotated: Gradients, bases: Gradients, gradients: Gradients) -> Gradients:
    """The inverse of ``to_eigenbasis``: tensors shaped as ``gradients``."""
    result = dict(rotated)
    for layer in layers_of(bases):
        matrix = bases[f"{layer}.outputs"] @ result.pop(layer) @ bases[f"{layer}.inputs"].T
        weight, bias = gradients[f"{layer}.weight"], gradients.get(f"{layer}.bias")
        if bias is not None:
            matrix, result[f"{layer}.bias"] = matrix[..., :-1], matrix[..., -1]
        result[f"{layer}.weight"] = matrix.reshape(weight.shape)
    return result


def layers_of(bases: Gradients) -> list[str]:
    """The layers that have Kronecker factors."""
    return [name.removesuffix(".inputs") for name in bases if name.endswith(".inputs")]
