"""TRAK: influence by randomly projected gradients of the loss.

    φ(z) = P( mean over timesteps and noises of ∇_θ L_t(z, θ) )
    τ(ẑ, z_i) = max over flips of the mean over models of  φ(ẑ)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z_i)

Reference: Park et al., arXiv 2303.14186, as arXiv 2406.09408 applies it to diffusion models (section 5.1 and appendix
B): the output function is the DDPM loss itself, so that the diagonal Q of the original, the derivative of the loss by
the output, is the identity.

Deviations: one model instead of 20 by default (``num_models``), a projection of 1,024 instead of 4,096, λ relative to
the kernel's mean eigenvalue, stratified timesteps (``bench.attribution.influence``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.influence import InfluenceMethod
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Trak(InfluenceMethod):
    """Projected gradients of the loss."""

    name: ClassVar[str] = "trak"
    summary: ClassVar[str] = "projected gradients of the loss, compared by their inverse covariance"
    output: ClassVar[str] = "loss"
