"""Ours: attribution by unlearning the synthesized image.

Unlearn the query by Newton steps on its loss, the other knowledge held by elastic weight consolidation, and score
each training image by how much of it is forgotten by proxy (arXiv 2406.09408, equations 4 to 6):

    θ ← θ + (α / N) F⁻¹ ∇L(ẑ, θ)          τ(ẑ, z) = max over flips of  L(z, θ_−ẑ) − L(z, θ0)

F is the diagonal of the Fisher information: the mean over draws of the squared per-sample gradient, one image, flip,
noise and timestep a draw, accumulated in float64.

Deviations:

- ``damping`` adds a share of each tensor's mean Fisher to its diagonal (the paper has none; the authors' follow-up
  uses 0.1).
- ``query_rise``, where it is above 0, replaces α: the step is the one that raises the query's own loss by that share.
  So it is on ``fashion``, ``small`` and ``emoji``; the ``step_size`` that is tuned for ``fashion`` is not used then.
- Losses are compared at every ``timestep_stride``-th timestep from half a stride on (50, 150, … for 100), not at all
  timesteps of the schedule.
- ``timestep_limit`` leaves out the timesteps from it on (on ``fashion`` and ``small`` those from 500; by default none).
- The Fisher is the mean of ``num_fisher_draws`` images drawn with replacement, each with its own flip, noise and
  timestep, not of a pass over the training set. Where one was published with the model, it is taken instead.
- The gradient of the consolidation term, which is near zero at θ0, is left out, as in the authors' released code.

The variants are the paper's ablations (appendix C.1): other weights, several steps, and plain gradient ascent, whose
weights it leaves open (here the same K/V). Its step sizes on MSCOCO are 0.01 for cross-attn-kv, 0.005 for cross-attn
and attn, 5e-4 for all, 1e-3 for sgd-1 and 1e-4 for sgd-10; as they hold for no other model, variants raise the query's
loss by a twentieth instead, as was best for the method on ``fashion``, which makes them comparable before anything is
tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from bench.attribution.fisher import diagonal_fisher, fisher_key, newton_direction
from bench.attribution.gradients import Gradients
from bench.attribution.unlearning import Ascent, Unlearning
from bench.contracts import AttributionContext
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput
from bench.registry import register_method

RISE = 0.05


@register_method
@dataclass(frozen=True, kw_only=True)
class Ours(Unlearning):
    """Attribution by unlearning.

    Attributes:
        fisher: "diagonal", or "none" for plain gradient ascent θ ← θ + α ∇L(ẑ, θ).
    """

    name: ClassVar[str] = "ours"
    summary: ClassVar[str] = "training images forgotten when the query is unlearned"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "cross-attn-kv": {},
            "cross-attn": {"weights": "cross-attn", "query_rise": RISE},
            "attn": {"weights": "attn", "query_rise": RISE},
            "all": {"weights": "all", "query_rise": RISE},
            "newton-1": {"query_rise": RISE},
            "newton-10": {"num_steps": 10, "query_rise": RISE},
            "sgd-1": {"fisher": "none", "query_rise": RISE},
            "sgd-10": {"fisher": "none", "num_steps": 10, "query_rise": RISE},
        }
    )

    fisher: str = "diagonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fisher not in ("diagonal", "none"):
            raise InvalidInput(f"ours: fisher='{self.fisher}'; expected diagonal or none.")

    def ascent(self, context: AttributionContext) -> Ascent:
        """F⁻¹ g / N, or g itself."""
        if self.fisher == "none":
            return lambda gradient: gradient
        diagonal = self.fisher_of(context)

        def newton(gradient: Gradients) -> Gradients:
            return {
                name: newton_direction(slope, diagonal[name].to(slope.device), self.damping) / len(context.dataset)
                for name, slope in gradient.items()
            }

        return newton

    def fisher_of(self, context: AttributionContext) -> Gradients:
        """The diagonal Fisher information of the selected weights over the training set, shared by all queries.

        Of a customized model: that of its base, shared by all models that were customized from it (the paper, C.2).
        """
        context = context.base or context
        if context.fisher is not None:
            published = context.fisher()
            return {name: published[name].double() for name in select_weights(context.model.unet, self.weights)}
        key = fisher_key(self.weights, self.num_fisher_draws)
        return context.cached(key, lambda: diagonal_fisher(context, self.weights, self.num_fisher_draws))
