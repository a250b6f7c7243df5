"""D-TRAK: TRAK with the squared prediction in place of the loss.

    φ(z) = P( mean over timesteps and noises of ∇_θ mean over elements of ε_θ(x_t, t, c)² )
    τ(ẑ, z_i) = max over flips of the mean over models of  φ(ẑ)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z_i)

Reference: Zheng et al., arXiv 2311.00500, with the output function "square" for training images and queries alike.
λ matters more than for ``trak``; theirs is absolute (500 at a projection of 32,768 on MSCOCO), here it is a share of
the kernel's mean eigenvalue. Other deviations: those of ``trak``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from bench.attribution.influence import InfluenceMethod
from bench.attribution.projection import AUTO
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class DTrak(InfluenceMethod):
    """Projected gradients of the mean squared prediction."""

    name: ClassVar[str] = "d_trak"
    summary: ClassVar[str] = "as trak, with gradients of the mean squared prediction instead of the loss"
    output: ClassVar[str] = "square"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"auto": {"projection": AUTO}})
