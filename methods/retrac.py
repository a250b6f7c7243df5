"""Diffusion-ReTrac: gradients at checkpoints of the training, each timestep's brought to length one.

    τ(ẑ, z) = max over flips of  Σ over checkpoints c of η_c · mean over timesteps t of  u_c,t(ẑ)ᵀ u_c,t(z)

    u_c,t = ∇L_t(θ_c) / ‖∇L_t(θ_c)‖,   η_c the learning rate at the checkpoint, as a share of their sum

TracIn follows how much a step on z lowers the loss of ẑ. The length of a gradient depends on the timestep far more
than on the image, so without the division images drawn at loud timesteps are influential for every query.

Reference: Xie et al., arXiv 2401.09031. Written from the paper's idea; OURS: both gradients at the same strided
timesteps, one noise of an image and ``num_query_noises`` of the query at each; checkpoints at equal distances, of the
plain weights, from a training that is done again; the larger of both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.attribution.directions import layer_products, squared_norms, sum_over_layers
from bench.attribution.gradients import Gradients
from bench.attribution.influence import Rows, keyed_rows, over_samples
from bench.attribution.sides import check_flips, over_sides
from bench.contracts import AttributionContext, Method
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.selections import check_selection
from bench.errors import InvalidInput, Unavailable
from bench.registry import register_method

TINY = 1e-30


@register_method
@dataclass(frozen=True, kw_only=True)
class Retrac(Method):
    """Unit gradients at checkpoints.

    Attributes:
        num_checkpoints: at equal distances, the last one at the end of the training.
        num_timesteps: strided, from half a stride on.
        num_query_noises: at each timestep.
        weights: whose gradients: "all", "cross-attn-kv", "cross-attn" or "attn".
        flips: "max" or "mean" over an image and its mirror image.
    """

    name: ClassVar[str] = "retrac"
    summary: ClassVar[str] = "gradients at checkpoints of the training, each timestep's of length one"
    needs: ClassVar[str] = "checkpoints of the training, which is done again for them"
    honours_regions: ClassVar[bool] = True

    num_checkpoints: int = 4
    num_timesteps: int = 10
    num_query_noises: int = 20
    weights: str = "all"
    flips: str = "max"

    def __post_init__(self) -> None:
        check_flips(self.name, self.flips)
        check_selection(self.weights)
        if min(self.num_checkpoints, self.num_timesteps, self.num_query_noises) < 1:
            raise InvalidInput(f"{self.name}: {self}: counts of 1 or more are expected.")

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """The sum over checkpoints, the larger of an image's two sides."""
        total = torch.zeros(len(queries), len(context.dataset), 2, dtype=torch.float64)
        for model, share in self.checkpoints(context):
            total += share * self.alignments(context, model, queries)
        sides = total.float()
        return over_sides(sides, self.flips)

    def checkpoints(self, context: AttributionContext) -> list[tuple[DiffusionModel, float]]:
        """Models on the way of the training, and their shares of the learning rates."""
        training = context.trainings.get("original")
        if training is None:
            raise Unavailable("how the model was trained is not known here, and retrac needs checkpoints of it")
        recipe, run = training.recipe, training.run(context.model.device)
        ends = {round(recipe.num_steps * (part + 1) / self.num_checkpoints) for part in range(self.num_checkpoints)}
        found = []
        while not run.finished:
            run.advance()
            context.progress(run.step, recipe.num_steps)
            if run.step in ends:
                model = DiffusionModel(training.config, device=context.model.device)
                nn.utils.vector_to_parameters(run.weights.detach().clone(), model.unet.parameters())
                found.append((model, recipe.learning_rate_at(run.step - 1)))
        rates = sum(rate for _, rate in found)
        return [(model, rate / rates if rates else 1 / len(found)) for model, rate in found]

    def alignments(
        self, context: AttributionContext, model: DiffusionModel, queries: Sequence[Query]
    ) -> Float[Tensor, "queries images 2"]:
        """The mean over timesteps of the cosine of both gradients."""
        count, data, ids = self.num_timesteps, context.data, context.dataset.ids
        stride = model.config.num_timesteps // count
        timesteps = [stride // 2 + number * stride for number in range(count)]
        asked = [unit for query in queries for unit in self.query_units(context, model, query, timesteps)]

        def rows_of(sample: int) -> Rows:
            side, number = divmod(sample, count)
            image, mirrored = divmod(side, 2)
            key = (context.seed, "retrac", ids[image], bool(mirrored), number)
            one = torch.tensor([image])
            state = data.states_at(data.caption_rows(one, number % data.num_captions(one)))[0]
            return keyed_rows(model, data.latents[image, mirrored], state, 1, *key, timestep=timesteps[number])

        def cosines(samples: Tensor, found: Gradients) -> Tensor:
            products = sum_over_layers(layer_products(found, asked)).view(len(queries), count, -1)
            own = products[:, samples % count, torch.arange(len(samples))]
            return own / sum_over_layers(squared_norms(found)).sqrt().clamp_min(TINY)

        parts = over_samples(
            model, "loss", self.weights, rows_of, 2 * len(ids) * count, cosines, group=1, progress=context.progress
        )
        return torch.cat(parts, 1).view(len(queries), len(ids), 2, count).mean(-1)

    def query_units(
        self, context: AttributionContext, model: DiffusionModel, query: Query, timesteps: Sequence[int]
    ) -> list[Gradients]:
        """u of the query at each timestep, in its region."""
        state = model.text_encoder.encode([query.prompt])[0]

        def rows_of(number: int) -> Rows:
            key = (context.seed, "retrac-query", query.noise_key, number)
            return keyed_rows(model, query.latent, state, self.num_query_noises, *key, timestep=timesteps[number])

        def unit(_: Tensor, found: Gradients) -> list[Gradients]:
            norms = sum_over_layers(squared_norms(found)).sqrt().clamp_min(TINY)
            return [{name: part[row] / float(norm) for name, part in found.items()} for row, norm in enumerate(norms)]

        parts = over_samples(
            model, "loss", self.weights, rows_of, len(timesteps), unit, group=self.num_query_noises, region=query.region
        )
        return [each for part in parts for each in part]
