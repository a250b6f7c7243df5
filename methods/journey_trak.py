"""Journey-TRAK: TRAK with the query's gradient taken on its own sampling trajectory.

    x̂0 = the clean latent that the sampler predicts at the step nearest to t = 400, on the way from the query's noise
    φ(ẑ) = P( mean over 20 noises ε of ∇_θ L_t(x̂0, c; ε) )
    τ(ẑ, z_i) = max over flips of the mean over models of  φ(ẑ)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z_i)

Training features are those of ``trak``. Reference: Georgiev et al., arXiv 2312.06205, section 3, with the settings of
arXiv 2406.09408, section 5.1. The sum over noises is a mean here, which scales all scores of a query alike.

Deviations: those of ``trak``. The trajectory is that of θ0, which made the query, for every model of the ensemble; the
predicted x̂0 is the guided one, as it steered the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.influence import InfluenceMethod, Rows, keyed_rows
from bench.contracts import AttributionContext
from bench.diffusion.queries import Query
from bench.errors import InvalidInput, Unavailable
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class JourneyTrak(InfluenceMethod):
    """Projected gradients of the loss, the query's at one step of its journey.

    Attributes:
        timestep: of that step, or the sampler's nearest.
        num_query_draws: noises there.
    """

    name: ClassVar[str] = "journey_trak"
    summary: ClassVar[str] = "as trak, with the query's gradient at t = 400 of its own sampling trajectory"
    output: ClassVar[str] = "loss"
    self_rank: ClassVar[str] = "it looks at the trajectory from the query's noise, which does not lead to that image"

    timestep: int = 400
    num_query_draws: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timestep < 0:
            raise InvalidInput(f"journey_trak: timestep={self.timestep}; expected 0 to the schedule's last.")

    def query_rows(self, context: AttributionContext, query: Query) -> Rows:
        """Re-noised copies of the x̂0 that the sampler predicted."""
        model = context.model
        if self.timestep >= model.config.num_timesteps:
            raise InvalidInput(
                f"journey_trak: timestep={self.timestep}; the schedule ends at {model.config.num_timesteps - 1}."
            )
        if query.noise.isnan().any():
            raise Unavailable(f"the noise that query '{query.id}' came from is not known")
        step = query.sampler.step_near(model, query.noise[None], [query.prompt], self.timestep)
        state = model.text_encoder.encode([query.prompt])[0]
        key = (context.seed, "journey", query.noise_key)
        return keyed_rows(model, step.predicted.cpu()[0], state, self.num_query_draws, *key, timestep=step.timestep)
