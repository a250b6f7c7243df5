"""Retrieval metrics, for models customized on known exemplars: how high the exemplars stand among distractors.

Reference: arXiv 2406.09408, section 5.2. Print the number of distractors beside every value: both fall as it grows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bench.errors import InvalidInput


def recall_at_k(ranking: Sequence[str], exemplars: Collection[str], k: int = 10) -> float:
    """|exemplars among the first k| / |exemplars|: below 1 by necessity where there are more than k of them.

    Args:
        ranking: ids of exemplars and distractors, the most influential first, each once.
        exemplars: ids of the ground truth, all of them in ``ranking``.
        k: how many count.
    """
    ranks = _ranks(ranking, exemplars)
    if k < 1:
        raise InvalidInput(f"Recall at k = {k}: k of at least 1 is expected.")
    return sum(rank <= k for rank in ranks) / len(ranks)


def average_precision(ranking: Sequence[str], exemplars: Collection[str]) -> float:
    """Mean over exemplars of (exemplars up to its rank) / (its rank); 1 where they stand before all distractors."""
    ranks = _ranks(ranking, exemplars)
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks)


def _ranks(ranking: Sequence[str], exemplars: Collection[str]) -> list[int]:
    """The exemplars' ranks from 1 on, ascending."""
    wanted = set(exemplars)
    if not wanted:
        raise InvalidInput("There are no exemplars to retrieve.")
    if len(set(ranking)) != len(ranking):
        raise InvalidInput("The ranking holds images more than once.")
    ranks = [rank for rank, image in enumerate(ranking, 1) if image in wanted]
    if len(ranks) != len(wanted):
        raise InvalidInput(f"{len(wanted) - len(ranks)} of {len(wanted)} exemplars are missing from the ranking.")
    return ranks
