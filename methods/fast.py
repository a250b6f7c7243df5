"""Fast: similarity by a small head that learned to rank training images as a slow teacher ranks them.

    τ(ẑ, z_i) = max over flips f of cos( r(φ(x̂)), r(φ(f(x_i))) )

φ are pixels (or an encoder's features), reduced to principal components of the training images; r is a perceptron of
one hidden layer, trained on the teacher's rankings for queries that no board reports (``bench.attribution.heads``,
``bench train-heads --teacher``). A query costs one pass of r and one product. The idea is that of FastGDA (Wang et al.,
2025, arXiv 2511.10721), which learns from attribution by unlearning, on DINO and CLIP features; its loss is a
cross-entropy with ranks as targets, as here. Ours: a smaller head, targets that count the teacher's first images alone,
and the teacher: ``das``, which finds most carriers of rare parts on ``faces``.

Heads that were trained for ``faces`` and ``fashion`` ship; for another study train one and give it with --weights
fast=FILE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.attribution.features import backbone_of_images, backbone_of_queries, backbone_weights, cosines
from bench.attribution.heads import Ranker, components
from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.errors import InvalidInput, Unavailable, UnknownName
from bench.pretrained.encoders import RANKERS, encoder
from bench.pretrained.weights import Weights
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Fast(Method):
    """Similarity by a head that learned from a slow teacher.

    Attributes:
        backbone: what the head stands on: "pixel", or an encoder of images.
        head: the study whose head is used where --weights gives none.
    """

    name: ClassVar[str] = "fast"
    summary: ClassVar[str] = "cosine similarity by a head that learned to rank as a slow teacher does, max over flips"
    needs: ClassVar[str] = (
        "a head trained for the study by `bench train-heads --teacher`; those of faces and fashion ship"
    )
    added: ClassVar[tuple[str, ...]] = ("head",)

    backbone: str = "pixel"
    head: str = "faces"

    def __post_init__(self) -> None:
        if self.head not in RANKERS:
            raise UnknownName("head of fast", self.head, RANKERS)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The head's, and the encoder's where there is one."""
        return (RANKERS[self.head], *backbone_weights(self.backbone))

    def unavailable(self) -> str:
        """Weights that are missing."""
        return next((why for weights in self.weights if (why := weights.unavailable())), "")

    def prepare(self) -> None:
        """Download weights on first use."""
        super().prepare()
        for weights in self.weights:
            weights.fetch()

    def sources(self) -> dict[str, str]:
        """Head and encoder with the hashes of their weights."""
        head, *others = self.weights
        return {"head": head.identity(), **(encoder(self.backbone).sources() if others else {})}

    def caveat(self) -> str:
        """Random weights are declared."""
        return f"random weights of {self.name}" if self.weights[0].random else ""

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Cosines in [−1, 1]."""
        images = backbone_of_images(context, self.backbone)
        dim = images.shape[2]
        try:
            head = RANKERS[self.head].load(lambda: Ranker(dim, components(dim)))
        except InvalidInput as error:
            raise Unavailable(
                f"fast: its head is not for this study ({error}); train one with `bench train-heads --teacher METHOD`"
            ) from error
        assert isinstance(head, Ranker)
        return cosines(head(backbone_of_queries(context, self.backbone, queries)), head(images))
