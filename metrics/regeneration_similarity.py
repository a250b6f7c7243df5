"""Regeneration similarity: how alike the leave-K-out model's image and the original model's are to an encoder φ.

    S = cos( φ(G_θ0(ε, c)), φ(G_θ^−K(ε, c)) ),   the same noise and prompt

One metric for each image encoder of ``bench.pretrained.encoders``, as values under different encoders say different
things. The paper uses CLIP ViT-B/32. Encoders see natural images; small grey ones are far from those.

Reference: arXiv 2406.09408, equation 3 with d = CLIP similarity. Lower is better: the image is lost.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from bench.contracts import Metric
from bench.diffusion.observations import Observation, Regeneration
from bench.diffusion.queries import Query
from bench.foundation.digests import tensors_digest
from bench.pretrained.encoders import ENCODERS, encoder
from bench.registry import register_metric


class RegenerationSimilarity(Metric):
    """Cosine of the features of both models' images.

    Attributes:
        encoder: its name in ``bench.pretrained.encoders``.
    """

    unit: ClassVar[str] = "cosine, from -1 to 1"
    higher_is_better: ClassVar[bool] = False
    observation: ClassVar[Observation] = Regeneration()
    encoder: ClassVar[str]

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Cosine in [−1, 1]; 1 for equal images."""
        return float(functional.cosine_similarity(self._features(original), self._features(retrained), dim=0))

    def unavailable(self) -> str:
        """Packages or weights that are missing; random weights measure nothing."""
        one = encoder(self.encoder)
        if one.weights.random:
            return f"the weights of '{self.encoder}' are random: a similarity under them means nothing"
        return one.unavailable()

    def prepare(self) -> None:
        """Download weights on first use."""
        super().prepare()
        encoder(self.encoder).weights.fetch()

    def sources(self) -> dict[str, str]:
        """The encoder with the hash of its weights."""
        return encoder(self.encoder).sources()

    def _features(self, image: Tensor) -> Tensor:
        """φ of one image, alone in its batch; an original model's image comes back for every method."""
        key = tensors_digest({"image": image}, {})
        if key not in self._kept:
            loaded = encoder(self.encoder).load(torch.device("cpu"))
            self._kept[key] = loaded.images(image[None])[0].double()
        return self._kept[key]


def _under(name: str) -> type[RegenerationSimilarity]:
    """The metric under one encoder."""
    attributes = {
        "__module__": __name__,
        "__doc__": RegenerationSimilarity.__doc__,
        "name": f"regeneration_similarity@{name}",
        "summary": f"cosine of the query's images by both models to {ENCODERS[name].model_id}",
        "encoder": name,
    }
    return cast("type[RegenerationSimilarity]", type(f"Under_{name}", (RegenerationSimilarity,), attributes))


for _name, _encoder in ENCODERS.items():
    if _encoder.images is not None:
        register_metric(_under(_name))
