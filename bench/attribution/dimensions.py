"""Which projection is enough: none where the gradients fit the memory, else the least that ranks as none does.

    agreement(d) = the mean over queries of Spearman's ρ between a method's scores with a projection to d dimensions
                   and with none, of the same images

``projection=auto`` asks this before it scores anything. All gradients of a large study do not fit the memory, so the
agreement is measured among ``IMAGES`` images drawn by chance, fewer where these do not fit either, with ``PROBES``
others of the training images as queries; ``bench projection`` takes the study's own queries. No reported query decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from bench.attribution.projection import EXACT, KINDS
from bench.contracts import AttributionContext
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput
from bench.foundation import seeds

if TYPE_CHECKING:
    from bench.attribution.influence import InfluenceMethod

EXACT_BYTES = 2**30
"""The most that gradients, or their projections, of all images may take in memory."""
ENOUGH = 0.9
"""A projection whose ranks agree less is largely its own random numbers."""
DIMENSIONS = (256, 1024, 4096, 16384)
"""That ``projection=auto`` tries, and ``bench projection`` compares beside a method's own."""
IMAGES, PROBES = 500, 4
LEAST = 100
"""Ranks of fewer images tell too little of a projection."""


class Choice(NamedTuple):
    """What ``projection=auto`` chose.

    Attributes:
        dimension: of the projection; 0 for none.
        agreement: with no projection, for each probe; 1 where nothing is projected.
        images: that were ranked for it.
    """

    dimension: int
    agreement: Float[Tensor, " probes"]
    images: int

    @classmethod
    def of(cls, kept: Mapping[str, Tensor]) -> Choice:
        """From the tensors that the cache keeps."""
        return cls(int(kept["dimension"]), kept["agreement"], int(kept["images"]))

    def applied(self, method: InfluenceMethod) -> InfluenceMethod:
        """``method`` with this projection."""
        if not self.dimension:
            return replace(method, projection=EXACT)
        return replace(method, projection=KINDS[0], projection_dim=self.dimension)


def feature_bytes(images: int, dimension: int) -> int:
    """Of features of so many dimensions, of every image and its mirror image."""
    return 2 * images * dimension * 4


def check_exact(name: str, images: int, weights: int) -> None:
    """Raise InvalidInput where the gradients of all images do not fit the memory."""
    size = feature_bytes(images, weights)
    if size > EXACT_BYTES:
        raise InvalidInput(
            f"{name}: projection=exact keeps 2 × {images} gradients of {weights} weights, "
            f"{size / 2**30:.1f} GiB; at most {EXACT_BYTES / 2**30:g} GiB are taken. Project them: "
            f"`bench projection --method {name}` tells which projection_dim agrees with the exact kernel, "
            "projection=auto chooses one."
        )


def choice_key(method: InfluenceMethod) -> str:
    """The name under which the choice of ``method`` is cached."""
    return f"projection-choice-{method.digest}"


def choice(method: InfluenceMethod, context: AttributionContext, sampler: Sampler) -> Choice:
    """The projection of ``method`` on this study, chosen once.

    Args:
        method: with ``projection`` "auto".
        context: of the study.
        sampler: of its queries.

    Raises:
        InvalidInput: where the gradients of too few images fit the memory to measure it.
    """
    return Choice.of(context.cached(choice_key(method), lambda: _chosen(method, context, sampler)))


def among(context: AttributionContext, images: Sequence[int]) -> AttributionContext:
    """``context`` of these images alone, with artifacts of its own."""
    chosen, kept = torch.as_tensor(images), dict[str, dict[str, Any]]()

    def cached(key: str, build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Any]:
        if key not in kept:
            kept[key] = dict(build())
        return kept[key]

    return replace(context, dataset=context.dataset.only(images), data=context.data.only(chosen), cached=cached)


def agreement(
    one: Float[Tensor, "queries images"], other: Float[Tensor, "queries images"]
) -> Float[Tensor, " queries"]:
    """Spearman's ρ of two methods' scores for each query."""
    pairs = zip(one.numpy(), other.numpy(), strict=True)
    return torch.tensor([float(stats.spearmanr(*pair).statistic) for pair in pairs])


def _chosen(method: InfluenceMethod, context: AttributionContext, sampler: Sampler) -> dict[str, Tensor]:
    """None where that fits, else the least of ``DIMENSIONS`` that is enough, the largest that fits where none is."""
    images = len(context.dataset)
    weights = sum(weight.numel() for weight in select_weights(context.model.unet, method.weights).values())
    if feature_bytes(images, weights) <= EXACT_BYTES:
        return _kept(0, torch.ones(1), images)
    count = min(IMAGES, EXACT_BYTES // feature_bytes(1, weights), images - PROBES)
    if count < LEAST:
        raise InvalidInput(
            f"{method.name}: projection=auto compares projections with the gradients themselves, and those of {count} "
            f"images at {weights} weights are all that fit {EXACT_BYTES / 2**30:g} GiB; {LEAST} are needed. Give "
            "projection=rademacher with a projection_dim (1024 is usual), or take fewer weights: "
            f"--set {method.name}.weights=cross-attn-kv."
        )
    places = seeds.generator("projection-choice", context.seed).permutation(images)
    order = [context.dataset.by_id[int(place)] for place in places]
    probes = [_probe(context, index, number, sampler) for number, index in enumerate(order[:PROBES])]
    sample = among(context, sorted(order[PROBES : PROBES + count]))
    exact = replace(method, projection=EXACT).scores(sample, probes)
    fitting = [dimension for dimension in DIMENSIONS if feature_bytes(images, dimension) <= EXACT_BYTES]
    for dimension in fitting or DIMENSIONS[:1]:
        found = agreement(Choice(dimension, exact, count).applied(method).scores(sample, probes), exact)
        if found.mean() >= ENOUGH:
            break
    return _kept(dimension, found, count)


def _kept(dimension: int, found: Tensor, images: int) -> dict[str, Tensor]:
    return {"dimension": torch.tensor(dimension), "agreement": found, "images": torch.tensor(images)}


def _probe(context: AttributionContext, index: int, number: int, sampler: Sampler) -> Query:
    """A training image as a query."""
    dataset = context.dataset
    noise = seeds.normal(context.model.latent_shape, "projection-probe", context.seed, dataset.ids[index])
    latent = context.data.latents[index, 0]
    return Query(f"probe-{number}", dataset.captions[index], number, noise, latent, sampler)
