"""EK-FAC influence: the influence function of all weights with the generalised Gauss-Newton matrix.

    τ(ẑ, z_i) = max over flips of  ∇L(ẑ, θ0)ᵀ ( G + damping )⁻¹ ∇L(z_i, θ0)

G, the Gauss-Newton matrix of the training loss, is that of the squared error of the predicted noise: its derivative by
the prediction is exact, the network is linearised, and no residual enters (unlike the empirical Fisher of ``ours`` and
``ours_ekfac``, to which images that are predicted well add nothing). EK-FAC of ``bench.attribution.ekfac``, from
targets sampled from the model's own predictions; gradients are not projected.

Reference: Mlodozeniec et al., arXiv 2410.13850 (ICLR 2025): G of the prediction ε_θ rather than of the loss (their
"GGN model" form), and the loss itself as what is measured. Deviations: an eigenvalue correction (theirs is K-FAC);
the damping is a share of the mean eigenvalue of each layer rather than one number for all; stratified timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.directions import DirectionMethod
from bench.attribution.ekfac import ekfac_direction, ekfac_factors
from bench.attribution.fisher import PREDICTION
from bench.attribution.gradients import Gradients
from bench.contracts import AttributionContext
from bench.errors import InvalidInput
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class EkfacInfluence(DirectionMethod):
    """The influence function with an EK-FAC Gauss-Newton matrix.

    Attributes:
        num_ggn_draws: single examples, each with one sampled target, in the mean of G.
    """

    name: ClassVar[str] = "ekfac_influence"
    summary: ClassVar[str] = "the influence function of all weights, with an EK-FAC Gauss-Newton matrix"

    num_ggn_draws: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_ggn_draws < 1:
            raise InvalidInput(f"{self.name}: num_ggn_draws={self.num_ggn_draws}; expected 1 or more.")

    def directions(self, context: AttributionContext, gradients: Sequence[Gradients]) -> list[Gradients]:
        """(G + damping)⁻¹ ∇L(ẑ) of every query."""
        factors = ekfac_factors(context, self.weights, self.num_ggn_draws, PREDICTION)
        bases, eigenvalues = ({k: v.to(context.model.device) for k, v in part.items()} for part in factors)
        batch = ({name: slope.unsqueeze(0) for name, slope in gradient.items()} for gradient in gradients)
        solved = (ekfac_direction(each, bases, eigenvalues, self.damping) for each in batch)
        return [{name: part.squeeze(0) for name, part in step.items()} for step in solved]
