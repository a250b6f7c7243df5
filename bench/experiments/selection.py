"""Stage 5, the top K: D_ẑ^K, the K training images that a method scores highest for a query; and images by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bench.data.dataset import Dataset, places_of
from bench.foundation import seeds


def top_k(scores: Float[Tensor, " images"], ids: Sequence[str], k: int) -> tuple[int, ...]:
    """Indices of the ``k`` highest scores, the highest first; ties are broken by image id."""
    by_score_then_id = np.lexsort((places_of(tuple(ids)), -scores.double().numpy()))
    return tuple(by_score_then_id[:k].tolist())


def drawn(dataset: Dataset, count: int, *key: seeds.KeyPart) -> tuple[int, ...]:
    """``count`` random images as ascending indices, a function of the key and the images' ids, not of their order."""
    shuffled, by_id = seeds.generator(*key).permutation(len(dataset)), dataset.by_id
    return tuple(sorted(by_id[int(place)] for place in shuffled[:count]))
