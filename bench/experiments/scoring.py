"""Stage 4, the scores: run a method on the queries it has not scored yet, check what it returns, keep it.

A row of scores is kept by (study, method with its settings, query), so that a run with more queries scores only these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.errors import MethodFailed, Unavailable
from bench.foundation import border
from bench.records import folder
from bench.records.store import Artifacts, Store
from bench.registry import methods

QUERIES_AT_ONCE = 4
"""Queries are scored so many at a time: what they share is computed once, and an interruption loses no more."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one method.

    Attributes:
        matrix: queries × images, higher = more influential.
        seconds: what scoring one query cost, one number for each query. What queries share counts in equal parts for
            those that one run scored, also where another method or an earlier run had built it.
    """

    matrix: Float[Tensor, "queries images"]
    seconds: tuple[float, ...]


def score(
    method: Method,
    queries: Sequence[Query],
    store: Store,
    artifacts: Artifacts,
    make_context: Callable[[], AttributionContext],
) -> Scores:
    """Scores of ``method`` for ``queries``, taken from the store where they are there.

    Args:
        method: with its settings.
        queries: rows of the result.
        store: of the results folder.
        artifacts: what methods share, which the context offers.
        make_context: makes the method's context; called only when needed.
    """
    rows = {query.digest: _stored(store, method, query) for query in queries}
    missing = [query for query in queries if rows[query.digest] is None]
    if missing:
        with store.lock(f"scores-{method.name}-{method.digest}"):
            missing = [query for query in missing if _stored(store, method, query) is None]
            if missing:
                _compute(method, missing, store, artifacts, make_context)
        rows = {query.digest: _stored(store, method, query) for query in queries}
    found = [row for row in rows.values() if row is not None]
    return Scores(torch.stack([row for row, _ in found]), tuple(seconds for _, seconds in found))


def is_scored(store: Store, method: Method, query: Query) -> bool:
    """Whether the scores of ``query`` are kept."""
    return store.path(*_parts(method, query)).exists()


def _compute(
    method: Method,
    queries: Sequence[Query],
    store: Store,
    artifacts: Artifacts,
    make_context: Callable[[], AttributionContext],
) -> None:
    context = make_context()
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = queries[start : start + QUERIES_AT_ONCE]
        started, spared = time.perf_counter(), artifacts.spared
        matrix = checked_scores(method, context, part)
        seconds = (time.perf_counter() - started + artifacts.spared - spared) / len(part)
        for query, row in zip(part, matrix, strict=True):
            store.write_tensors(_parts(method, query), {"scores": row}, seconds=repr(seconds))


def checked_scores(
    method: Method, context: AttributionContext, queries: Sequence[Query]
) -> Float[Tensor, "queries images"]:
    """What ``method`` returns; MethodFailed where it raises, or returns no finite tensor of this shape.

    Raises Unavailable for a query with a region where the method has none. A BenchError is raised as it is: the user
    can mend it. The border is here too, for functions that were put into a class after it was defined.
    """
    if any(query.region is not None for query in queries):
        check_regions(method)
    found: Tensor = border.called(
        lambda: method.scores(context, queries),
        f"Method '{method.name}'",
        MethodFailed,
        lambda value: border.score_matrix(value, (context, queries)),
        file=border.module_file(type(method)),
    )
    return found


def check_regions(method: Method) -> None:
    """Raise Unavailable where ``method`` cannot attribute a region of a query."""
    if not method.honours_regions:
        able = ", ".join(each.name for each in methods if each.honours_regions)
        raise Unavailable(f"{method.name} has no regions: it looks at whole images only (with regions: {able})")


def _parts(method: Method, query: Query) -> tuple[str, ...]:
    return folder.scores(method.name, method.digest, query.digest)


def _stored(store: Store, method: Method, query: Query) -> tuple[Tensor, float] | None:
    found = store.tensors(*_parts(method, query))
    return None if found is None else (found[0]["scores"].float(), float(found[1]["seconds"]))
