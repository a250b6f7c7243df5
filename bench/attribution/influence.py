"""Influence by projected gradients: what ``trak``, ``journey_trak``, ``d_trak`` and ``das`` share.

Features: the gradient of an output function f at an example z, averaged over draws of (noise, timestep) and projected,

    φ(z) = P( 1/T Σ_k ∇_θ f(z, t_k, ε_k) )        of every training image as it is and mirrored

Kernel: ΦᵀΦ = Σ over images of the mean over both sides of φφᵀ, since training drew each side half of the time. It is
regularised relative to its size, so that one λ means the same for models of any size, loss or projection:

    K = ΦᵀΦ + λ · tr(ΦᵀΦ)/rank · I,   rank = min(d, 2N)       s_i = φ_qᵀ K⁻¹ φ_i

With ``projection="exact"`` nothing is projected, where weights and images are few enough; the kernel is then taken
among images where these are fewer than weights (``DualKernel``). ``bench projection`` tells what a projection costs,
and ``projection="auto"`` takes none or the least that is enough (``bench.attribution.dimensions``).

Sign: with f the loss, a training step against ∇L(z_i) lowers L(ẑ) where the two gradients agree, so without an image of
positive s the query's loss is higher: higher = more influential.

Draws are keyed by (study seed, image, mirrored, draw) or (study seed, query, draw), and stratified: the k-th of T
timesteps is uniform in the k-th of T equal parts of the schedule, which has the mean of free draws and less variance.

References: TRAK (arXiv 2303.14186) for projection and kernel; arXiv 2312.06205 and 2311.00500 for diffusion models.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.attribution.dimensions import check_exact, choice
from bench.attribution.gradients import (
    Gradients,
    differentiable_copy,
    per_sample_gradients,
)
from bench.attribution.projection import AUTO, EXACT, Projection, Unprojected, check_projection
from bench.attribution.sides import check_flips, over_sides
from bench.contracts import AttributionContext, Method
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.regions import Region, inside
from bench.diffusion.selections import check_selection, select_weights
from bench.errors import InvalidInput, MethodFailed
from bench.foundation import seeds
from bench.foundation.digests import digest_of
from bench.foundation.machine import active_threads, parallel

T = TypeVar("T")
POSITIONS_AT_ONCE = 16384
"""Latent positions in one forward and backward pass, where a group is no larger: 83 rows of 14×14."""
GRADIENT_BYTES = 192 * 2**20
"""Gradients of one thread that wait for being projected together."""
GRAM_ROWS = 8192


class Rows(NamedTuple):
    """What a U-Net is run on: one row for each draw."""

    latents: Float[Tensor, "rows c h w"]
    states: Float[Tensor, "rows tokens dim"]
    timesteps: Int[Tensor, " rows"]
    noise: Float[Tensor, "rows c h w"]


def keyed_rows(
    model: DiffusionModel,
    latent: Float[Tensor, "c h w"],
    state: Float[Tensor, "tokens dim"],
    count: int,
    *key: seeds.KeyPart,
    timestep: int | None = None,
) -> Rows:
    """``count`` draws of one example, at stratified timesteps or all at ``timestep``."""
    shape, total = model.latent_shape, model.config.num_timesteps
    timesteps, noise = [], []
    for draw in range(count):
        stream = seeds.generator("influence", *key, draw)
        place = (draw + stream.random()) / count
        timesteps.append(int(place * total) if timestep is None else timestep)
        noise.append(stream.standard_normal(shape, dtype=np.float32))
    return Rows(
        latent.expand(count, *shape),
        state.expand(count, *state.shape),
        torch.tensor(timesteps),
        torch.from_numpy(np.stack(noise)),
    )


def image_rows(context: AttributionContext, model: DiffusionModel, count: int) -> Callable[[int], Rows]:
    """``count`` draws of every training image and side: sample 2 i is image i as it is, 2 i + 1 its mirror image.

    The draws take the captions of the image in turn.
    """
    data, ids = context.data, context.dataset.ids

    def rows_of(sample: int) -> Rows:
        image, side = divmod(sample, 2)
        same = torch.full((count,), image)
        states = data.states_at(data.caption_rows(same, torch.arange(count) % data.num_captions(same)))
        key = (context.seed, "image", ids[image], bool(side))
        return keyed_rows(model, data.latents[image, side], states[0], count, *key)._replace(states=states)

    return rows_of


def _joined(parts: Sequence[Rows], device: torch.device) -> Rows:
    return Rows(*(torch.cat(columns).to(device) for columns in zip(*parts, strict=True)))


Where = Region | None


def _loss(model: DiffusionModel, unet: nn.Module, rows: Rows, region: Where = None) -> Float[Tensor, " rows"]:
    return model.losses(rows.latents, rows.states, rows.timesteps, rows.noise, unet=unet, region=region)


def _prediction(model: DiffusionModel, unet: nn.Module, rows: Rows, region: Where) -> Float[Tensor, "rows elements"]:
    noisy = model.noised(rows.latents, rows.noise, rows.timesteps)
    return inside(model.predict_noise(noisy, rows.timesteps, rows.states, unet=unet), region).flatten(1)


def _square(model: DiffusionModel, unet: nn.Module, rows: Rows, region: Where = None) -> Float[Tensor, " rows"]:
    return _prediction(model, unet, rows, region).square().mean(1)


def _mean(model: DiffusionModel, unet: nn.Module, rows: Rows, region: Where = None) -> Float[Tensor, " rows"]:
    return _prediction(model, unet, rows, region).mean(1)


def _along(model: DiffusionModel, unet: nn.Module, rows: Rows, region: Where = None) -> Float[Tensor, " rows"]:
    predicted = model.predict_noise(rows.latents, rows.timesteps, rows.states, unet=unet)
    return inside(predicted * rows.noise, region).flatten(1).mean(1)


OUTPUTS: dict[str, Callable[..., Float[Tensor, " rows"]]] = {
    "loss": _loss,
    "square": _square,
    "mean": _mean,
    "along": _along,
}
"""Output functions f: the DDPM loss; the mean over elements of ε_θ²; the mean over elements of ε_θ; the mean over
elements of ε_θ times a direction, at latents that are noisy already, where the direction stands in place of the noise.

Each takes model, U-Net and rows, and the region in which its mean is taken: of a query's, never of a training image's.
"""


def projected_gradients(
    model: DiffusionModel,
    output: str,
    weights: str,
    projection: Projection | Unprojected,
    rows_of: Callable[[int], Rows],
    count: int,
    *,
    group: int,
    region: Region | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "samples dimension"]:
    """Features of ``count`` samples: the projected mean gradient of f over the ``group`` rows of each.

    Args:
        model: whose U-Net, noise schedule and device serve.
        output: f, a name in ``OUTPUTS``.
        weights: with respect to which, a name in ``WEIGHT_SELECTIONS``.
        projection: of these weights.
        rows_of: the rows of a sample, ``group`` of them.
        count: number of samples.
        group: rows in a sample.
        region: in which f takes its mean; all of the image where that is None.
        progress: called with the number of samples done and in all.
    """
    result = torch.empty(count, projection.dimension)

    def project(samples: Tensor, gradients: Gradients) -> None:
        result[samples] = (projection(gradients) / group).cpu()

    over_samples(model, output, weights, rows_of, count, project, group=group, region=region, progress=progress)
    return checked(result)


def over_samples(
    model: DiffusionModel,
    output: str,
    weights: str,
    rows_of: Callable[[int], Rows],
    count: int,
    visit: Callable[[Tensor, Gradients], T],
    *,
    group: int,
    region: Region | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[T]:
    """What ``visit`` makes of some samples and of the sums of their rows' gradients, for all parts in order.

    Args:
        model, output, weights, rows_of, count, group, region, progress: as for ``projected_gradients``.
        visit: given the numbers of some samples and their gradients by parameter, samples in front, summed over the
            ``group`` rows of each. It runs on several threads.
    """
    at_once = max(1, _rows_at_once(model) // group)
    num_weights = sum(weight.numel() for weight in select_weights(model.unet, weights).values())
    most = max(1, GRADIENT_BYTES // (4 * num_weights))
    size = min(most, max(at_once, math.ceil(count / active_threads())))
    spare: list[nn.Module] = []
    done = 0

    def work(samples: Tensor) -> T:
        nonlocal done
        try:
            unet = spare.pop()
        except IndexError:
            unet = differentiable_copy(model.unet, weights)
        parts: list[Gradients] = []
        for batch in samples.split(at_once):
            rows = _joined([rows_of(sample) for sample in batch.tolist()], model.device)
            parts.append(per_sample_gradients(unet, partial(OUTPUTS[output], model, unet, rows, region), group=group))
        spare.append(unet)
        found = visit(samples, {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])})
        done += len(samples)
        progress(done, count)
        return found

    return parallel(work, torch.arange(count).split(size))


def _rows_at_once(model: DiffusionModel) -> int:
    return max(1, POSITIONS_AT_ONCE // model.config.sample_size**2)


def checked(features: Float[Tensor, "samples dimension"]) -> Float[Tensor, "samples dimension"]:
    """``features`` where they can be used; raises MethodFailed where some are not finite or all zero."""
    broken = int((~torch.isfinite(features)).any(1).sum())
    if broken:
        raise MethodFailed(
            f"The gradients of {broken} of {len(features)} examples are NaN or infinite: the model diverged "
            "in training. Lower the recipe's learning rate and train it again."
        )
    silent = int((features == 0).all(1).sum())
    if silent:
        raise MethodFailed(
            f"The gradients of {silent} of {len(features)} examples are all zero: the selected weights do not move "
            "the output, as in a model that was not trained. Train it, or select others with --set METHOD.weights=all."
        )
    return features


def gram_matrix(features: Float[Tensor, "images sides d"], device: torch.device) -> Float[Tensor, "d d"]:
    """ΦᵀΦ, in float64: the sum over images of the mean over their sides of φφᵀ."""
    rows = features.flatten(0, 1)
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=device)
    for part in rows.split(GRAM_ROWS):
        moved = part.to(device).double()
        total.addmm_(moved.T, moved)
    return total / features.shape[1]


class Kernel:
    """(ΦᵀΦ + λ tr(ΦᵀΦ)/rank I)⁻¹, factored in float64.

    Args:
        gram: ΦᵀΦ.
        regularization: λ, a share of the mean of the eigenvalues that can differ from zero.
        num_rows: of Φ; no more eigenvalues than these can.
    """

    def __init__(self, gram: Float[Tensor, "d d"], regularization: float, num_rows: int) -> None:
        shifted = gram.double().clone()
        shifted.diagonal().add_(regularization * gram.diagonal().double().sum() / min(len(gram), num_rows))
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if int(failed):
            raise MethodFailed(
                f"The kernel of {len(gram)} × {len(gram)} is singular with regularization={regularization}: "
                "give a larger one, or a smaller projection_dim."
            )
        self._factor = factor

    def solve(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """K⁻¹ φ for each row, in float64."""
        moved = features.to(self._factor.device).double()
        return torch.cholesky_solve(moved.T, self._factor).T

    def products(
        self, queries: Float[Tensor, "queries d"], features: Float[Tensor, "images sides d"]
    ) -> Float[Tensor, "queries images sides"]:
        """φ_qᵀ K⁻¹ φ_i for every query, image and side, in float64 on the CPU."""
        solved = self.solve(queries)
        parts = [solved @ part.to(solved.device).double().T for part in features.flatten(0, 1).split(GRAM_ROWS)]
        return torch.cat(parts, 1).view(len(queries), *features.shape[:2]).cpu()


class DualKernel(Kernel):
    """The same K⁻¹ where Φ has more columns than rows, by the matrix among rows (Woodbury's identity), in float64.

        K⁻¹ = ( I − Ψᵀ ( ΨΨᵀ + μI )⁻¹ Ψ ) / μ       Ψ = Φ / √sides,   μ = λ · tr(ΨΨᵀ) / rank

    Args:
        features: Φ.
        regularization: λ, above 0.
        device: where.
    """

    def __init__(self, features: Float[Tensor, "images sides d"], regularization: float, device: torch.device) -> None:
        self._rows = features.flatten(0, 1).to(device).double() / math.sqrt(features.shape[1])
        among = self._rows @ self._rows.T
        self._shift = regularization * float(among.diagonal().sum()) / len(among)
        super().__init__(among, regularization, len(among))

    def solve(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """K⁻¹ φ for each row, in float64."""
        moved = features.to(self._factor.device).double()
        explained = torch.cholesky_solve(self._rows @ moved.T, self._factor).T @ self._rows
        return (moved - explained) / self._shift


@dataclass(frozen=True, kw_only=True)
class InfluenceMethod(Method, ABC):
    """A method that compares projected gradients by the kernel. A subclass names f, or overrides a step.

    Attributes:
        projection_dim: d; an inner product of gradients is kept to about 1/√d.
        projection: "rademacher" or "normal"; "exact" for none, or "auto" for none where the gradients fit the memory,
            else the least dimension that is enough: then ``projection_dim`` says nothing.
        num_timesteps: draws of (timestep, noise) for each image and side.
        num_query_draws: the same for a query.
        weights: whose gradients: "all", "cross-attn-kv", "cross-attn" or "attn".
        num_models: size of the ensemble of models, trained on the same data, over which scores are averaged.
        regularization: λ, a share of the kernel's mean eigenvalue; tune it on held-out queries.
        flips: "max" or "mean" over an image and its mirror image.
    """

    output: ClassVar[str] = "loss"
    honours_regions: ClassVar[bool] = True

    projection_dim: int = 1024
    projection: str = "rademacher"
    num_timesteps: int = 10
    num_query_draws: int = 100
    weights: str = "all"
    num_models: int = 1
    regularization: float = 0.1
    flips: str = "max"

    def __post_init__(self) -> None:
        check_projection(self.projection, self.projection_dim)
        check_selection(self.weights)
        check_flips(self.name, self.flips)
        if min(self.num_timesteps, self.num_query_draws, self.num_models) < 1:
            raise InvalidInput(f"{self.name}: num_timesteps, num_query_draws and num_models of 1 or more are expected.")
        if not 0 <= self.regularization < math.inf:
            raise InvalidInput(
                f"{self.name}: regularization={self.regularization}; expected 0 or more, usually 1e-3 to 10."
            )
        if self.projection in (EXACT, AUTO) and self.regularization == 0:
            raise InvalidInput(f"{self.name}: projection={self.projection} needs a regularization above 0.")

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Mean over the ensemble, then the larger of an image's two sides."""
        if self.projection == AUTO:
            return choice(self, context, queries[0].sampler).applied(self).scores(context, queries)
        self._check_kernel(context)
        total = torch.zeros(len(queries), len(context.dataset), 2, dtype=torch.float64)
        for member, model in enumerate(context.ensemble(self.num_models)):
            total += self.member_scores(context, member, model, queries)
        mean = (total / self.num_models).float()
        return over_sides(mean, self.flips)

    def member_scores(
        self, context: AttributionContext, member: int, model: DiffusionModel, queries: Sequence[Query]
    ) -> Float[Tensor, "queries images 2"]:
        """s_i of every query, image and side under one model of the ensemble."""
        training = self.training_features(context, member, model, self.output)
        kernel = self.kernel_of(model, training)
        return kernel.products(self.query_features(context, member, model, queries), training["features"])

    def query_features(
        self, context: AttributionContext, member: int, model: DiffusionModel, queries: Sequence[Query]
    ) -> Float[Tensor, "queries d"]:
        """φ of every query in its region: of equal groups of its rows, the largest that fit, and their mean."""
        projection = self.projection_of(context, member, model)
        count, most = self.num_query_draws, _rows_at_once(model)
        group = max(size for size in range(1, most + 1) if count % size == 0)
        features = []
        for query in queries:
            parts = [
                Rows(*part) for part in zip(*(c.split(group) for c in self.query_rows(context, query)), strict=True)
            ]
            found = projected_gradients(
                model, self.output, self.weights, projection, parts.__getitem__, len(parts),
                group=group, region=query.region,
            )  # fmt: skip
            features.append(found.mean(0))
        return torch.stack(features)

    def kernel_of(self, model: DiffusionModel, training: dict[str, Tensor]) -> Kernel:
        """K of the training set's features."""
        if "gram" not in training:
            return DualKernel(training["features"], self.regularization, model.device)
        rows = training["features"].shape[0] * training["features"].shape[1]
        return Kernel(training["gram"].to(model.device), self.regularization, rows)

    def query_rows(self, context: AttributionContext, query: Query) -> Rows:
        """The draws at which a query's gradient is taken: of its image, at stratified timesteps."""
        state = context.model.text_encoder.encode([query.prompt])[0]
        key = (context.seed, "query", query.noise_key)
        return keyed_rows(context.model, query.latent, state, self.num_query_draws, *key)

    def projection_of(
        self, context: AttributionContext, member: int, model: DiffusionModel
    ) -> Projection | Unprojected:
        """R, another one for each model of the ensemble."""
        sizes = {name: weight.numel() for name, weight in select_weights(model.unet, self.weights).items()}
        if self.projection == EXACT:
            return Unprojected(sizes)
        key = (context.seed, member)
        return Projection(sizes, self.projection_dim, *key, kind=self.projection, device=model.device)

    def training_features(
        self, context: AttributionContext, member: int, model: DiffusionModel, output: str
    ) -> dict[str, Tensor]:
        """``features`` (images × 2 × d) and ``gram`` (d × d), computed once for all queries and methods.

        Without ``gram`` where nothing is projected and there are fewer rows than weights.
        """
        ids = context.dataset.ids
        rows_of = image_rows(context, model, self.num_timesteps)

        def build() -> dict[str, Tensor]:
            projection = self.projection_of(context, member, model)
            flat = projected_gradients(
                model, output, self.weights, projection, rows_of, 2 * len(ids),
                group=self.num_timesteps, progress=context.progress,
            )  # fmt: skip
            return self.with_gram(flat, model.device)

        dimension = 0 if self.projection == EXACT else self.projection_dim
        parts = [output, self.weights, self.num_timesteps, self.projection, dimension, member]
        return context.cached(f"gradient-features-{digest_of(parts)}", build)

    def with_gram(self, flat: Float[Tensor, "sides d"], device: torch.device) -> dict[str, Tensor]:
        """``features``, images × 2 × d, and ``gram`` where the kernel is taken among dimensions."""
        features = flat.view(len(flat) // 2, 2, -1)
        if self.projection == EXACT and len(flat) < flat.shape[1]:
            return {"features": features}
        return {"features": features, "gram": gram_matrix(features, device).cpu()}

    def _check_kernel(self, context: AttributionContext) -> None:
        """Refuse, before anything is computed, a kernel that cannot be inverted."""
        weights = sum(weight.numel() for weight in select_weights(context.model.unet, self.weights).values())
        rank = min(len(context.dataset), weights)
        if self.projection == EXACT:
            check_exact(self.name, len(context.dataset), weights)
        elif self.regularization == 0 and self.projection_dim >= rank:
            raise InvalidInput(
                f"{self.name}: with regularization=0 the kernel of projection_dim={self.projection_dim} is singular, "
                f"as there are {len(context.dataset)} training images and {weights} weights: give a projection_dim "
                f"below {rank}, or a regularization above 0."
            )
