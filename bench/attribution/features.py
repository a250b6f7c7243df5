"""Similarity of features: features of queries and of the training set, and the methods that compare them.

    τ(ẑ, z_i) = max over flips f of cos( φ(x̂), φ(f(x_i)) )        images
    τ(ẑ, z_i) = cos( φ(c), φ(c_i) )                                texts: a flip changes no caption

A method is a few lines: it names an encoder φ of ``bench.pretrained.encoders``. Features of the training set are kept
under the digests of data set and encoder, so that methods and runs with one encoder share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.attribution.heads import Mappers
from bench.contracts import AttributionContext, Method
from bench.data.dataset import Dataset
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.foundation.digests import digest_of
from bench.foundation.machine import parallel
from bench.pretrained.encoders import HEADS, REDUCED, Encoder, encoder
from bench.pretrained.weights import Weights

IMAGE_BATCH = 16
TEXT_BATCH = 64
PIXEL = "pixel"
"""The backbone of heads that stand on plain pixels."""
SAME_CAPTION = "many training images share a caption, and all of them score the same"


def image_features(
    one: Encoder, dataset: Dataset, device: torch.device, progress: Callable[[int, int], None], batch: int = IMAGE_BATCH
) -> Float[Tensor, "images 2 dim"]:
    """φ of every image as it is and mirrored; ``batch`` changes the speed alone."""
    loaded, done = one.load(device), 0

    def features(rows: Tensor) -> Tensor:
        nonlocal done
        sides = [loaded.images(dataset.pixels(rows.tolist(), flipped=flipped)) for flipped in (False, True)]
        done += len(rows)
        progress(done, len(dataset))
        return torch.stack(sides, 1)

    return torch.cat(parallel(features, torch.arange(len(dataset)).split(batch)))


def text_features(one: Encoder, texts: Sequence[str], device: torch.device) -> Float[Tensor, "texts dim"]:
    """φ of every text; equal texts are encoded once."""
    loaded, distinct = one.load(device), sorted(set(texts))
    parts = [distinct[start : start + TEXT_BATCH] for start in range(0, len(distinct), TEXT_BATCH)]
    row_of = {text: row for row, text in enumerate(distinct)}
    return torch.cat(parallel(loaded.texts, parts))[[row_of[text] for text in texts]]


def training_image_features(context: AttributionContext, one: Encoder) -> Float[Tensor, "images 2 dim"]:
    """φ of the training images as they are and mirrored, kept."""

    def of(piece: Dataset) -> Tensor:
        build = lambda: {"features": image_features(one, piece, context.model.device, context.progress)}  # noqa: E731
        return context.cached(f"features-{one.name}-{digest_of([piece.digest, one.digest])}", build)["features"]

    return torch.cat([of(piece) for piece in context.dataset.pieces or (context.dataset,)])


def training_text_features(context: AttributionContext, one: Encoder) -> Float[Tensor, "images dim"]:
    """φ of the captions, kept."""

    def of(piece: Dataset) -> Tensor:
        build = lambda: {"features": text_features(one, piece.captions, context.model.device)}  # noqa: E731
        key = f"text-features-{one.name}-{digest_of([piece.digest, one.digest])}"
        return context.cached(key, build)["features"]

    return torch.cat([of(piece) for piece in context.dataset.pieces or (context.dataset,)])


def query_image_features(
    context: AttributionContext, one: Encoder, queries: Sequence[Query]
) -> Float[Tensor, "queries dim"]:
    """φ of the generated images."""
    loaded = one.load(context.model.device)
    images = context.model.autoencoder.decode(torch.stack([query.latent for query in queries]))
    return torch.cat([loaded.images(part) for part in images.split(IMAGE_BATCH)])


def backbone_weights(name: str) -> tuple[Weights, ...]:
    """What the backbone ``name`` loads; nothing where it is ``PIXEL``. Raises UnknownName, InvalidInput for texts."""
    if name == PIXEL:
        return ()
    one = encoder(name)
    if one.images is None:
        raise InvalidInput(f"The backbone '{name}' reads texts: heads stand on features of images.")
    return (one.weights,)


def backbone_of_images(context: AttributionContext, name: str) -> Float[Tensor, "images 2 dim"]:
    """φ of the training images as they are and mirrored, by an encoder's name or PIXEL."""
    if name != PIXEL:
        return training_image_features(context, encoder(name))
    sides = [context.dataset.pixels(flipped=flipped).flatten(1) for flipped in (False, True)]
    return torch.stack(sides, 1)


def backbone_of_queries(
    context: AttributionContext, name: str, queries: Sequence[Query]
) -> Float[Tensor, "queries dim"]:
    """φ of the generated images, by an encoder's name or PIXEL."""
    if name != PIXEL:
        return query_image_features(context, encoder(name), queries)
    return context.model.autoencoder.decode(torch.stack([query.latent for query in queries])).flatten(1)


def cosines(
    queries: Float[Tensor, "queries dim"], images: Float[Tensor, "images flips dim"]
) -> Float[Tensor, "queries images"]:
    """Cosine of each query with each image, the largest over flips."""
    made, known = functional.normalize(queries, dim=-1), functional.normalize(images, dim=-1)
    return torch.stack([made @ side.T for side in known.unbind(1)]).amax(0)


@dataclass(frozen=True, kw_only=True)
class EncoderMethod(Method):
    """A method that stands on a pretrained encoder.

    Attributes:
        encoder: its name in ``bench.pretrained.encoders``.
    """

    encoder: ClassVar[str]

    @property
    def weights(self) -> tuple[Weights, ...]:
        """All that it loads, the encoder's first."""
        return (encoder(self.encoder).weights,)

    def unavailable(self) -> str:
        """Packages or weights that are missing."""
        reasons = [encoder(self.encoder).unavailable(), *(weights.unavailable() for weights in self.weights[1:])]
        return next((why for why in reasons if why), "")

    def prepare(self) -> None:
        """Download weights on first use."""
        super().prepare()
        for weights in self.weights:
            weights.fetch()

    def sources(self) -> dict[str, str]:
        """The encoder with the hash of its weights."""
        return encoder(self.encoder).sources()

    def caveat(self) -> str:
        """Random weights are declared."""
        names = [weights.name for weights in self.weights if weights.random]
        return f"random weights of {' and '.join(names)}" if names else ""


@dataclass(frozen=True, kw_only=True)
class ImageSimilarity(EncoderMethod):
    """Cosine of image features, max over flips."""

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Cosines in [−1, 1]."""
        one = encoder(self.encoder)
        return cosines(query_image_features(context, one, queries), training_image_features(context, one))


@dataclass(frozen=True, kw_only=True)
class TextSimilarity(EncoderMethod):
    """Cosine of the features of prompt and caption."""

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Cosines in [−1, 1]."""
        one = encoder(self.encoder)
        made = text_features(one, [query.prompt for query in queries], context.model.device)
        return cosines(made, training_text_features(context, one).unsqueeze(1))


def _mapper_names(name: str) -> str:
    return name if name.startswith(("real_mapper.", "synth_mapper.", "reduce.")) else ""


@dataclass(frozen=True, kw_only=True)
class CustomizationSimilarity(EncoderMethod):
    """AbC (Wang et al., 2023, arXiv 2306.09345): similarity after linear maps trained on customized models.

        τ(ẑ, z_i) = max over flips f of cos( W_s φ(x̂) + b_s, W_r φ(f(x_i)) + b_r )

    The heads called by the method's name come from the authors' checkpoint, converted to safetensors with the names
    ``real_mapper.weight``, ``real_mapper.bias``, ``synth_mapper.weight`` and ``synth_mapper.bias``, or from
    ``bench train-heads``; where features are reduced first there are ``reduce.weight`` and ``reduce.bias`` too.
    """

    self_rank: ClassVar[str] = "a query and a training image go through different maps"

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The encoder's and the heads'."""
        return (*super().weights, HEADS[self.name])

    def sources(self) -> dict[str, str]:
        """Encoder and heads with the hashes of their weights."""
        return {**super().sources(), "heads": HEADS[self.name].identity()}

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Cosines in [−1, 1]."""
        one = encoder(self.encoder)
        heads = HEADS[self.name].load(lambda: Mappers(one.dim, REDUCED.get(one.name, 0)), _mapper_names)
        assert isinstance(heads, Mappers)
        made = heads.of_queries(query_image_features(context, one, queries))
        return cosines(made, heads.of_images(training_image_features(context, one)))
