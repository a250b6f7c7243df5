"""What scoring costs: shared work counts for every method that needs it, whichever came first, once in a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from bench.contracts import Method
from bench.errors import MethodFailed
from bench.experiments.scoring import checked_scores, score
from bench.records.store import Artifacts, Store

SECONDS = 0.4


@dataclass(frozen=True, kw_only=True)
class Sharing(Method):
    """Scores with an artifact that takes a while."""

    name: ClassVar[str] = "sharing"
    summary: ClassVar[str] = "zeros, after a while"
    number: int = 0

    def scores(self, context, queries):
        def features():
            time.sleep(SECONDS)
            return {"features": torch.zeros(2, len(context.dataset))}

        return context.cached("shared", features)["features"][: len(queries)]


def test_a_method_pays_for_what_others_or_earlier_runs_built_once_for_all_queries_of_a_run(tmp_path, context, queries):
    store = Store(tmp_path)

    def seconds(number, asked):
        artifacts = Artifacts(store)
        method = Sharing(number=number)
        return sum(score(method, asked, store, artifacts, lambda: replace(context, cached=artifacts)).seconds)

    assert seconds(0, queries[:1]) >= SECONDS
    assert seconds(1, queries[:1]) >= SECONDS
    assert seconds(0, queries[1:]) >= SECONDS  # a run on queries that are held out, say
    assert SECONDS <= seconds(2, queries) < 2 * SECONDS


def leave(context, queries):
    raise SystemExit(3)


ANSWERS = {
    "raised IndexError: list index out of range": lambda context, queries: [][0],
    "raised SystemExit: 3": leave,
    "raised MemoryError": lambda context, queries: (_ for _ in ()).throw(MemoryError("no room")),
    "returned numpy.ndarray; expected a torch.Tensor": lambda c, queries: np.zeros((len(queries), len(c.dataset))),
    "returned list; expected a torch.Tensor": lambda context, queries: [[0.0]],
    "returned NoneType; expected a torch.Tensor": lambda context, queries: None,
    "scores of shape ()": lambda context, queries: torch.tensor(0.0),
}


@pytest.mark.parametrize("message", ANSWERS)
def test_whatever_a_method_does_becomes_a_failure_of_that_method(message, context, queries):
    class Odd:
        name = "odd"
        scores = staticmethod(ANSWERS[message])

    with pytest.raises(MethodFailed, match="Method 'odd'") as failure:
        checked_scores.__wrapped__(Odd(), context, queries)  # without the shape checks of the tests
    assert message in str(failure.value)
