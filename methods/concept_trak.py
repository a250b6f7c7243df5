"""Concept-TRAK: TRAK on the gradients of two guidances, towards a training image and towards the prompt's new concept.

    φ(z)  = P Σ_t  unit( ∇_θ mean( sg(ε_θ − g_t) − ε_θ )² )    g_t = −∇_{x_t} mean( x̂0(x_t) − x )²
    φ(ẑ)  = P Σ_t  unit( ∇_θ mean( sg(ε_θ(c) + s (ε_θ(c) − ε_θ(c⁻))) − ε_θ(c) )² )
    τ(ẑ, z_i) = max over flips of  φ(ẑ)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z_i)

with sg the stopped gradient and unit(v) = v / ‖v‖. Training images are looked at on the way of their DDIM inversion,
where g_t points to the image itself (diffusion posterior sampling towards a point); the query on the way of its own
sampling. c⁻ is the prompt without the words that a fine-tuning learned, so that the difference is the concept V*;
where there are none, it is the empty prompt, and the concept is the whole prompt. Reference: Park et al., arXiv
2507.06547 (ICLR 2026), by its released code, whose factors 2 and s drop out of the unit gradients.

Ours: the query's own deterministic path instead of many with η = 0.1 from the same seed; guidance 1 on both paths, as
the embedded models are sampled so (theirs is 7.5 in the inversion); λ relative to the kernel's mean eigenvalue, where
theirs is swept for each task and reported at its best; projection and flips as for ``trak``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.gradients import Gradients
from bench.attribution.guidance import inverted, without_concept
from bench.attribution.influence import InfluenceMethod, Rows, checked, over_samples
from bench.contracts import AttributionContext
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Step
from bench.errors import InvalidInput
from bench.foundation.digests import digest_of
from bench.foundation.machine import parallel
from bench.registry import register_method

IMAGES_AT_ONCE = 32
TINY = 1e-30


@register_method
@dataclass(frozen=True, kw_only=True)
class ConceptTrak(InfluenceMethod):
    """Gradients of guidances, each of length one.

    Attributes:
        inversion_steps: of the DDIM inversion; ``num_timesteps`` of them are looked at, at equal distances.
        num_query_draws: steps of the query's own path that are looked at, at most all.
    """

    name: ClassVar[str] = "concept_trak"
    summary: ClassVar[str] = "gradients of guidance towards an image and towards the prompt's new word, of length one"
    output: ClassVar[str] = "along"
    honours_regions: ClassVar[bool] = False
    self_rank: ClassVar[str] = "it asks for the concept that the prompt names, not for the image"

    inversion_steps: int = 50
    num_query_draws: int = 10
    regularization: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inversion_steps < 1 or self.inversion_steps % self.num_timesteps:
            raise InvalidInput(
                f"{self.name}: inversion_steps={self.inversion_steps}; a multiple of num_timesteps="
                f"{self.num_timesteps} is expected."
            )

    def training_features(
        self, context: AttributionContext, member: int, model: DiffusionModel, output: str
    ) -> dict[str, Tensor]:
        """``features`` (images × 2 × d) and ``gram`` (d × d), computed once for all queries."""

        def build() -> dict[str, Tensor]:
            data, count = context.data, 2 * len(context.dataset)
            latents = data.latents.flatten(0, 1)
            states = data.caption_of.repeat_interleave(2)

            def guided(part: Tensor) -> list[Rows]:
                steps = self.inversion_steps, self.num_timesteps
                return inverted(model, latents[part], data.states_at(states[part]), *steps)

            parts = parallel(guided, torch.arange(count).split(IMAGES_AT_ONCE))
            total = torch.zeros(count, self.projection_of(context, member, model).dimension)
            for number in range(self.num_timesteps):
                rows = Rows(*(torch.cat(columns) for columns in zip(*(part[number] for part in parts), strict=True)))
                total += self.unit_gradients(context, member, model, rows)
                context.progress(number + 1, self.num_timesteps)
            return self.with_gram(checked(total), model.device)

        parts = [self.name, self.weights, self.num_timesteps, self.inversion_steps, self.projection,
                 self.projection_dim, member]  # fmt: skip
        return context.cached(f"gradient-features-{digest_of(parts)}", build)

    def query_features(
        self, context: AttributionContext, member: int, model: DiffusionModel, queries: Sequence[Query]
    ) -> Float[Tensor, "queries d"]:
        """φ of every query, along its concept."""
        made = [
            self.unit_gradients(context, member, model, self.concept_rows(model, query)).sum(0) for query in queries
        ]
        return checked(torch.stack(made))

    def unit_gradients(
        self, context: AttributionContext, member: int, model: DiffusionModel, rows: Rows
    ) -> Float[Tensor, "rows d"]:
        """The projected gradient of each row, of length one before."""
        projection = self.projection_of(context, member, model)
        result = torch.empty(len(rows.timesteps), projection.dimension)

        def project(samples: Tensor, found: Gradients) -> None:
            squares = torch.stack([part.flatten(1).square().sum(1) for part in found.values()]).sum(0)
            result[samples] = (projection(found) / squares.sqrt().clamp_min(TINY)[:, None]).cpu()

        def row(sample: int) -> Rows:
            return Rows(*(column[sample : sample + 1] for column in rows))

        over_samples(model, self.output, self.weights, row, len(rows.timesteps), project, group=1)
        return result

    def concept_rows(self, model: DiffusionModel, query: Query) -> Rows:
        """The query on its own path, with ε(c⁻) − ε(c) in place of the noise."""
        steps: list[Step] = []
        query.sampler.run(model, query.noise[None], [query.prompt], steps.append)
        count = min(self.num_query_draws, len(steps))
        chosen = [steps[(2 * number + 1) * len(steps) // (2 * count)] for number in range(count)]
        noisy = torch.cat([step.noisy for step in chosen])
        times = torch.tensor([step.timestep for step in chosen], device=model.device)
        told = model.text_encoder.encode([query.prompt, without_concept(model, query.prompt)]).to(model.device)
        states = [state.expand(count, *state.shape) for state in told]
        with torch.no_grad():
            with_it, without = (model.predict_noise(noisy, times, state) for state in states)
        return Rows(noisy.cpu(), states[0].cpu(), times.cpu(), (without - with_it).cpu())
