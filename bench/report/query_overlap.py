"""What the top images of two queries have in common: a method that names the same images for all attributes nothing.

The share of the top K that two queries with different prompts share, a mean over all such pairs. Xie et al. (arXiv
2401.09031) call images that stand at the top of many queries generally influential.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from bench.diffusion.queries import Query
from bench.errors import DamagedArtifact, InvalidInput
from bench.records import folder
from bench.records.sealing import read_json
from bench.records.selections import selected
from bench.records.store import Store

Tops = Mapping[tuple[str, int], Sequence[int]]
"""The top images by (query id, K)."""


def query_overlap(tops: Mapping[str, Sequence[object]], prompts: Mapping[str, str]) -> float:
    """The mean share of the top images that two queries with different prompts have in common; NaN without a pair.

    Args:
        tops: by query id, K images each.
        prompts: by query id.
    """
    pairs = [(one, other) for one, other in combinations(tops, 2) if prompts[one] != prompts[other]]
    shares = [len(set(tops[one]) & set(tops[other])) / len(tops[one]) for one, other in pairs]
    return float(np.mean(shares)) if shares else float("nan")


def overlaps(store: Store, rows: pd.DataFrame) -> dict[tuple[str, int], float]:
    """By digest of a method and K, the overlap in a results folder; what has no kept selections is left out.

    Args:
        store: of the folder, which holds the selections.
        rows: whose methods, queries and K.
    """
    found = {}
    for (method, digest), own in rows.groupby(["method", "method_digest"]):
        prompts = dict(zip(own["query"], own["prompt"], strict=True))
        digests = own.groupby("query")["query_digest"].first()
        named = {query: _named(store, str(method), str(digest), str(of)) for query, of in digests.items()}
        for k, at_k in own.groupby("k"):
            tops = {query: named[query][: int(k)] for query in at_k["query"].unique() if len(named[query]) >= int(k)}
            share = query_overlap(tops, prompts)
            if not np.isnan(share):
                found[str(digest), int(k)] = share
    return found


def _named(store: Store, method: str, digest: str, query: str) -> list[str]:
    """The ids that a method ranks first for a query; none where they were not kept, or have no file's name."""
    try:
        return selected(read_json(store.path(*folder.selection(method, digest, query))))
    except (
        FileNotFoundError,
        DamagedArtifact,
        InvalidInput,
    ):
        return []


def notes(selections: Mapping[str, Tops], queries: Sequence[Query], ks: Sequence[int], num_images: int) -> list[str]:
    """One line for each K: every method's overlap, the largest first, beside that of chance."""
    told = []
    prompts = {query.id: query.prompt for query in queries}
    for k in ks:
        found = {
            name: query_overlap({query.id: tops[query.id, k] for query in queries if (query.id, k) in tops}, prompts)
            for name, tops in selections.items()
        }
        parts = [f"{name} {share:.2f}" for name, share in sorted(found.items(), key=lambda each: -each[1])]
        if parts and not np.isnan(list(found.values())).any():
            told.append(
                f"share of the top {k} that two queries with different prompts have in common: {', '.join(parts)} "
                f"(two random choices: {k / num_images:.2f}); a method near 1 names the same images for every query"
            )
    return told
