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

from bench.attribution.ekfac import ekfac_direction, ekfac_factors
from bench.attribution.gradients import Gradients
from bench.attribution.unlearning import Ascent, Unlearning
from bench.contracts import AttributionContext
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
        return ekfac_factors(context, self.weights, self.num_fisher_draws)
