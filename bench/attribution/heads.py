"""Heads: small maps on frozen features φ, trained so that similarity of what they give tells attribution.

**Mappers** (AbC, arXiv 2306.09345): two affine maps, of queries and of training images, trained on customized models,
whose exemplars are known. Both begin at the identity. The loss is contrastive in both directions, a query against all
images of a batch and an image against all queries:

    s_ij = cos( W_s φ(x̂_i) + b_s, W_r φ(x_j) + b_r ) / τ       L = − mean log softmax_j s_ii − mean log softmax_i s_ii
           + regularization · ( ‖W_s − I‖² + ‖W_r − I‖² + ‖b_s‖² + ‖b_r‖² )

A batch has one query and one exemplar of each model. Models of one class are never each other's negatives. Distractors
join the images of the first direction, as they are what an exemplar is to be told from. The authors released no
training code: temperature, batch and regularisation are ours, chosen by cross-validation over models.

**Ranking** (the idea of FastGDA, arXiv 2511.10721): one multilayer perceptron r for queries and training images,
trained on the rankings of a slow *teacher*, so that a query costs milliseconds. With the rank ρ of an image among all
that the teacher scored (0 for the first) its target is 1 − ρ / cutoff, at least 0, and

    L = mean of the cross-entropy between σ( scale · cos( r(φ(x̂)), r(φ(x)) ) + bias ) and the target

over all pairs of a few queries and of images, some among the first ``cutoff`` of each, half as many drawn from all.

High-dimensional features are *reduced* first: centred, and projected on principal components of the training images,
each divided by its standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InvalidInput
from bench.foundation import seeds

MAPPER_STEPS, MAPPER_RATE = 200, 1e-3
RANKING_STEPS, RANKING_RATE = 1500, 1e-3
DISTRACTORS_AT_ONCE = 512
"""In a batch of the mappers."""
QUERIES_AT_ONCE, NEAR_EACH = 16, 32
"""In a batch of the ranker: queries, and images among the first ``cutoff`` of each."""
COMPONENTS, HIDDEN, OUTPUTS = 64, 256, 64
"""Of the perceptron that learns to rank."""
FLOOR = 1e-3
"""Share of the largest standard deviation below which a component is not enlarged."""


def _reducer(dim: int, reduced: int) -> nn.Linear | nn.Identity:
    return nn.Linear(dim, reduced) if reduced else nn.Identity()


class Mappers(nn.Module):
    """AbC's two affine maps: ``real_mapper`` for training images, ``synth_mapper`` for queries.

    Args:
        dim: of the features.
        reduced: to how many components they are reduced first by ``reduce``; 0 for none.
    """

    def __init__(self, dim: int, reduced: int = 0) -> None:
        super().__init__()
        self.reduce = _reducer(dim, reduced)
        width = reduced or dim
        self.real_mapper, self.synth_mapper = nn.Linear(width, width), nn.Linear(width, width)
        for mapper in (self.real_mapper, self.synth_mapper):
            nn.init.eye_(mapper.weight)
            nn.init.zeros_(mapper.bias)

    def of_queries(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch width"]:
        """What a query is compared by."""
        mapped: Tensor = self.synth_mapper(self.reduce(features))
        return mapped

    def of_images(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch width"]:
        """What a training image is compared by."""
        mapped: Tensor = self.real_mapper(self.reduce(features))
        return mapped


class Ranker(nn.Module):
    """The perceptron r of both queries and training images.

    Args:
        dim: of the features.
        reduced: to how many components they are reduced first by ``reduce``; 0 for none.
    """

    def __init__(self, dim: int, reduced: int = 0) -> None:
        super().__init__()
        self.reduce = _reducer(dim, reduced)
        self.first, self.second = nn.Linear(reduced or dim, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch outputs"]:
        """What queries and images are compared by."""
        mapped: Tensor = self.second(functional.relu(self.first(self.reduce(features))))
        return mapped


def components(dim: int) -> int:
    """To how many components features of ``dim`` numbers are reduced before a ranker."""
    return min(COMPONENTS, dim - 1)


def principal(features: Float[Tensor, "images dim"], reduced: int) -> nn.Linear:
    """The reduction to ``reduced`` principal components of ``features``, each of standard deviation 1 there.

    Raises InvalidInput where there are fewer images or dimensions than components.
    """
    if not 0 < reduced < min(features.shape):
        raise InvalidInput(
            f"{len(features)} images with features of {features.shape[1]} numbers cannot be reduced to {reduced} "
            f"components: 1 to {min(features.shape) - 1} are expected."
        )
    mean = features.double().mean(0)
    _, sizes, directions = torch.linalg.svd(features.double() - mean, full_matrices=False)
    deviations = sizes[:reduced] / len(features) ** 0.5
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()  # their signs are not determined
    weight = directions[:reduced] / deviations.clamp(min=FLOOR * float(deviations[0]))[:, None]
    layer = nn.Linear(features.shape[1], reduced)
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter((-weight @ mean).float(), requires_grad=False)
    return layer


@dataclass(frozen=True, eq=False)
class CustomizedFeatures:
    """Features of customized models, and of the images that their exemplars are told from.

    Attributes:
        classes: of each model; models of one class are no negatives of each other.
        queries: for each model, of its synthesized images.
        exemplars: for each model, of its exemplars as they are and mirrored.
        distractors: of other training images as they are and mirrored.
    """

    classes: tuple[str, ...]
    queries: tuple[Float[Tensor, "_ dim"], ...]
    exemplars: tuple[Float[Tensor, "_ 2 dim"], ...]
    distractors: Float[Tensor, "images 2 dim"]

    def only(self, models: Sequence[int]) -> CustomizedFeatures:
        """Those of some models, in that order."""
        return CustomizedFeatures(
            tuple(self.classes[model] for model in models),
            tuple(self.queries[model] for model in models),
            tuple(self.exemplars[model] for model in models),
            self.distractors,
        )


def train_mappers(
    head: Mappers, given: CustomizedFeatures, *, temperature: float, regularization: float, steps: int = MAPPER_STEPS
) -> Mappers:
    """``head``, whose two maps are trained; the reduction stays as it is.

    Raises InvalidInput where there are fewer than two classes of models: nothing would be told apart.
    """
    if len(set(given.classes)) < 2:
        raise InvalidInput("Heads are trained on models of two classes or more, so that they can be told apart.")
    maps = [*head.real_mapper.parameters(), *head.synth_mapper.parameters()]
    optimizer = torch.optim.AdamW(maps, MAPPER_RATE, weight_decay=0.0)
    one = torch.eye(head.real_mapper.out_features)
    allowed = allowed_pairs(given.classes)
    others = given.distractors.flatten(0, 1)
    for step in range(steps):
        stream = seeds.generator("train-mappers", step)
        queries = torch.stack([part[int(stream.integers(len(part)))] for part in given.queries])
        sides = [part.flatten(0, 1) for part in given.exemplars]
        exemplars = torch.stack([part[int(stream.integers(len(part)))] for part in sides])
        drawn = others[
            torch.from_numpy(stream.choice(len(others), min(len(others), DISTRACTORS_AT_ONCE), replace=False))
        ]
        loss = contrastive(head, queries, exemplars, drawn, allowed, temperature)
        away = sum(
            (mapper.weight - one).square().sum() + mapper.bias.square().sum()
            for mapper in (head.real_mapper, head.synth_mapper)
        )
        optimizer.zero_grad()
        (loss + regularization * away).backward()
        optimizer.step()
    return head.eval().requires_grad_(False)


def allowed_pairs(classes: Sequence[str]) -> Float[Tensor, "models models"]:
    """0 where query i and exemplar j may be compared, −∞ where they are of two models of one class."""
    of = {name: number for number, name in enumerate(dict.fromkeys(classes))}
    numbers = torch.tensor([of[name] for name in classes])
    same = numbers[:, None] == numbers[None]
    same.fill_diagonal_(False)
    return torch.zeros(same.shape).masked_fill(same, -torch.inf)


def contrastive(
    head: Mappers,
    queries: Float[Tensor, "models dim"],
    exemplars: Float[Tensor, "models dim"],
    distractors: Float[Tensor, "others dim"],
    allowed: Float[Tensor, "models models"],
    temperature: float,
) -> Float[Tensor, ""]:
    """The loss of a batch, in both directions; query i and exemplar i are of one model."""
    made, known, others = (
        functional.normalize(part, dim=-1)
        for part in (head.of_queries(queries), head.of_images(exemplars), head.of_images(distractors))
    )
    pairs = made @ known.T / temperature + allowed
    right = torch.arange(len(queries))
    among_images = functional.cross_entropy(torch.cat([pairs, made @ others.T / temperature], 1), right)
    return among_images + functional.cross_entropy(pairs.T, right)


def train_ranker(
    head: Ranker,
    queries: Float[Tensor, "queries dim"],
    images: Float[Tensor, "images dim"],
    scores: Float[Tensor, "queries images"],
    *,
    cutoff: int,
    steps: int = RANKING_STEPS,
) -> Ranker:
    """``head``, trained to rank ``images`` for each query as ``scores`` of the teacher do; the reduction stays.

    Args:
        head: to train.
        queries, images: features.
        scores: of the teacher, higher = more influential.
        cutoff: the teacher's first so many count; all others are alike.
    """
    if not 1 < cutoff <= len(images):
        raise InvalidInput(f"cutoff = {cutoff}: 2 to {len(images)}, the number of training images, is expected.")
    order = scores.sort(dim=1, descending=True, stable=True).indices
    target = torch.zeros(scores.shape).scatter_(
        1, order[:, :cutoff], (1 - torch.arange(cutoff) / cutoff).expand(len(scores), -1)
    )
    with torch.no_grad():
        asked, known = head.reduce(queries), head.reduce(images)
    scale, bias = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor(-2.0))
    layers = nn.Sequential(head.first, nn.ReLU(), head.second)
    optimizer = torch.optim.AdamW([*layers.parameters(), scale, bias], RANKING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RANKING_RATE, total_steps=steps)
    for step in range(steps):
        stream = seeds.generator("train-ranker", step)
        chosen = torch.from_numpy(stream.choice(len(asked), min(len(asked), QUERIES_AT_ONCE), replace=False))
        near = torch.from_numpy(stream.integers(cutoff, size=(len(chosen), NEAR_EACH)))
        far = torch.from_numpy(stream.integers(len(known), size=len(chosen) * NEAR_EACH // 2))
        drawn = torch.cat([order[chosen].gather(1, near).flatten(), far])
        made, seen = (functional.normalize(layers(part), dim=-1) for part in (asked[chosen], known[drawn]))
        logits = scale * made @ seen.T + bias
        loss = functional.binary_cross_entropy_with_logits(logits, target[chosen][:, drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval().requires_grad_(False)
