"""TRAK: influence by randomly projected gradients of the loss.

    φ(z) = P( mean over timesteps and noises of ∇_θ L_t(z, θ) )
    τ(ẑ, z_i) = max over flips of the mean over models of  φ(ẑ)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z_i)

Reference: Park et al., arXiv 2303.14186, as arXiv 2406.09408 applies it to diffusion models (section 5.1 and appendix
B): the output function is the DDPM loss itself, so that the diagonal Q of the original, the derivative of the loss by
the output, is the identity.

Deviations: one model instead of 20 by default (``num_models``), a projection of 1,024 instead of 4,096, λ relative to
the kernel's mean eigenvalue, stratified timesteps (``bench.attribution.influence``).

``trak:traker`` lets the authors' package do all of it with the same draws (``bench.attribution.traker``): for a reader
who trusts that more. With equal projections both rank images alike; with its own, as two random projections do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.attribution.influence import InfluenceMethod
from bench.attribution.projection import AUTO, KINDS
from bench.attribution.traker import installed, traker_scores
from bench.contracts import AttributionContext
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.registry import register_method

OWN, TRAKER = "own", "traker"


@register_method
@dataclass(frozen=True, kw_only=True)
class Trak(InfluenceMethod):
    """Projected gradients of the loss.

    Attributes:
        package: who computes it, "own" or "traker".
    """

    name: ClassVar[str] = "trak"
    summary: ClassVar[str] = "projected gradients of the loss, compared by their inverse covariance"
    output: ClassVar[str] = "loss"
    needs: ClassVar[str] = "the package traker (extra [trak]) for trak:traker alone"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"auto": {"projection": AUTO}, "traker": {"package": TRAKER}}
    )
    added: ClassVar[tuple[str, ...]] = ("package",)

    package: str = OWN

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.package not in (OWN, TRAKER):
            raise InvalidInput(f"trak: package='{self.package}'; expected {OWN} or {TRAKER}.")
        if self.package == TRAKER and self.projection not in KINDS:
            raise InvalidInput(
                f"trak: package=traker projects gradients; projection={self.projection} is package=own's."
            )

    def unavailable(self) -> str:
        """Where the package is missing, how to get it."""
        if self.package == OWN or installed():
            return ""
        return "the package traker is not installed: pip install 'attribution-bench[trak]'"

    def sources(self) -> dict[str, str]:
        """The package's version."""
        return {"traker": installed()} if self.package == TRAKER else {}

    def member_scores(
        self, context: AttributionContext, member: int, model: DiffusionModel, queries: Sequence[Query]
    ) -> Float[Tensor, "queries images 2"]:
        """s_i of every query, image and side under one model of the ensemble, by either package."""
        if self.package == OWN:
            return super().member_scores(context, member, model, queries)
        return traker_scores(self, context, model, queries, seed=member)
