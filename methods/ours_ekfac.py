"""Ours with EK-FAC: attribution by unlearning, with curvature that sees how the weights of a layer work together.

As ``ours``, θ ← θ + (α / N) F⁻¹ ∇L(ẑ, θ), but F is block-diagonal over layers, and diagonal in each layer's Kronecker
eigenbasis instead of weight by weight (George et al., 2018, arXiv 1806.03884; Grosse et al., 2023, arXiv 2308.03296):

    A = E[a aᵀ] = U_A D_A U_Aᵀ,   S = E[g gᵀ] = U_S D_S U_Sᵀ        a: a layer's input, g: the gradient at its output
    Λ = E[(U_Sᵀ G U_A)²]                                          G = Σ g aᵀ: one draw's gradient of the weight
    F⁻¹ ∇ = U_S ( U_Sᵀ ∇ U_A / (Λ + damping · mean Λ) ) U_Aᵀ

Λ is exact in the basis: on average over weights it is the diagonal Fisher of ``ours``. Only the basis rests on K-FAC's
assumptions: a and g independent, and, where weights are shared by tokens or positions, these independent of each
other too, so that A and S sum over all of them (their scale does not matter, as Λ replaces D_S ⊗ D_A).

Choices: a convolution's a is the patch that an output position sees; a bias is the weight of an appended input of 1;
the few weights of normalisation layers keep the diagonal Fisher. E is over draws of the training loss itself (the
empirical Fisher, the same draws for A, S and Λ as for ``ours``), in two passes and float64. The damping is the 0.1 of
the authors' follow-up, which published no step size for models of other sizes: the step raises the query's loss by
``query_rise``, or is α = ``step_size`` where that is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bench.attribution.fisher import Losses, mean_over_draws, newton_direction
from bench.attribution.gradients import Gradients, kronecker_sums, per_sample_gradients
from bench.attribution.unlearning import Ascent, Unlearning
from bench.contracts import AttributionContext
from bench.foundation.digests import digest_of
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class OursEkfac(Unlearning):
    """Attribution by unlearning with an EK-FAC Fisher."""

    name: ClassVar[str] = "ours_ekfac"
    summary: ClassVar[str] = "as ours, with an eigenvalue-corrected Kronecker-factored Fisher"

    query_rise: float = 0.1

    def ascent(self, context: AttributionContext) -> Ascent:
        """F⁻¹ g / N."""
        bases, eigenvalues = self.fisher_of(context)
        bases, eigenvalues = ({k: v.to(context.model.device) for k, v in part.items()} for part in (bases, eigenvalues))

        def newton(gradient: Gradients) -> Gradients:
            batch_of_one = {name: slope.unsqueeze(0) for name, slope in gradient.items()}
            step = ekfac_direction(batch_of_one, bases, eigenvalues, self.damping)
            return {name: part.squeeze(0) / len(context.dataset) for name, part in step.items()}

        return newton

    def fisher_of(self, context: AttributionContext) -> tuple[Gradients, Gradients]:
        """The bases U_A and U_S of each layer, and Λ in them, shared by all queries."""
        context = context.base or context
        key = digest_of([self.weights, self.num_fisher_draws])

        def factors() -> Gradients:
            return eigenbases(mean_over_draws(context, self.weights, self.num_fisher_draws, kronecker_sums))

        bases = context.cached(f"ekfac-basis-{key}", factors)

        def squares(unet: nn.Module, losses: Losses) -> Gradients:
            own = {name: basis.to(context.model.device) for name, basis in bases.items()}
            rotated = to_eigenbasis(per_sample_gradients(unet, losses), own)
            return {name: part.square().sum(0) for name, part in rotated.items()}

        def corrected() -> Gradients:
            return mean_over_draws(context, self.weights, self.num_fisher_draws, squares)

        return bases, context.cached(f"ekfac-eigenvalues-{key}", corrected)


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
