"""What the top images of two queries have in common: a method that names the same images for all attributes nothing.

The share of the top K that two queries with different prompts share, a mean over all such pairs. Xie et al. (arXiv
2401.09031) call images that stand at the top of many queries generally influential.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from bench.diffusion.queries import Query

Tops = Mapping[tuple[str, int], Sequence[int]]
"""The top images by (query id, K)."""


def query_overlap(tops: Tops, queries: Sequence[Query], k: int) -> float:
    """The mean share of the top ``k`` that two queries with different prompts have in common; NaN without a pair."""
    pairs = [(one, other) for one, other in combinations(queries, 2) if one.prompt != other.prompt]
    shares = [len(set(tops[one.id, k]) & set(tops[other.id, k])) / k for one, other in pairs]
    return float(np.mean(shares)) if shares else float("nan")


def notes(selections: Mapping[str, Tops], queries: Sequence[Query], ks: Sequence[int], num_images: int) -> list[str]:
    """One line for each K: every method's overlap, the largest first, beside that of chance."""
    told = []
    for k in ks:
        found = {name: query_overlap(tops, queries, k) for name, tops in selections.items()}
        parts = [f"{name} {share:.2f}" for name, share in sorted(found.items(), key=lambda each: -each[1])]
        if parts and not np.isnan(list(found.values())).any():
            told.append(
                f"share of the top {k} that two queries with different prompts have in common: {', '.join(parts)} "
                f"(two random choices: {k / num_images:.2f}); a method near 1 names the same images for every query"
            )
    return told
