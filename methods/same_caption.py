"""Same caption: what a reader of captions names without looking at an image, a floor of every comparison.

    τ(ẑ, z_i) = N · Σ over features f of c that c_i has too of 1 / n_f + a random number in [0, 10⁻³)

A feature is a word beside the last word of its phrase ("green hair" of "long green hair"), phrases being what commas
part; of a phrase of more than four words, a sentence, each word is one. n_f of the N captions have f. So each feature
of the prompt is one unit of credit that its carriers share: the rarer what is shared, the more it counts. Equals are
in random order, keyed by the query.

Ours. A method that does not beat it reads the prompt and finds what anyone would by a search for words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.attribution.chance import tie_breaks
from bench.contracts import FLOOR, AttributionContext, Method
from bench.diffusion.queries import Query
from bench.registry import register_method

LONGEST_PHRASE = 4
JITTER = 1e-3


@register_method
@dataclass(frozen=True, kw_only=True)
class SameCaption(Method):
    """Captions that share rare words with the prompt."""

    name: ClassVar[str] = "same_caption"
    summary: ClassVar[str] = "what prompt and caption share, weighted by its rarity; equals at random"
    role: ClassVar[str] = FLOOR
    phrase: ClassVar[str] = "a reader of captions"
    self_rank: ClassVar[str] = "images of one caption differ by chance alone"

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Shared credit, from 0 to N times the number of the prompt's features."""
        dataset = context.dataset
        of_caption = {caption: features(caption) for caption in set(dataset.captions)}
        counts = Counter(feature for caption in dataset.captions for feature in of_caption[caption])
        scores = torch.zeros(len(queries), len(dataset), dtype=torch.float64)
        for row, query in zip(scores, queries, strict=True):
            asked = features(query.prompt)
            credit = {
                caption: sum(1 / counts[feature] for feature in sorted(asked & own))
                for caption, own in of_caption.items()
            }
            row += JITTER * tie_breaks(context, query, "same-caption")
            row += len(dataset) * torch.tensor([credit[caption] for caption in dataset.captions], dtype=torch.float64)
        return scores.float()


def features(caption: str) -> frozenset[tuple[str, ...]]:
    """What a reader looks for in a caption."""
    found: set[tuple[str, ...]] = set()
    for phrase in caption.lower().split(","):
        words = phrase.split()
        if len(words) in range(2, LONGEST_PHRASE + 1):
            found |= {(word, words[-1]) for word in words[:-1]}
        else:
            found |= {(word,) for word in words}
    return frozenset(found)
