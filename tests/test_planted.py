"""Planted truth: what a board must find when the answer is known beforehand.

The picture of each query lies in the training set 15 times under other ids. A method must then name these copies, and a
method whose scores are the truth plus noise must stand on the board in the order of its noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from bench import Method, Run, methods, study
from bench.data.dataset import Dataset
from bench.diffusion.queries import save_queries
from bench.experiments.selection import top_k
from bench.foundation.machine import compute_threads
from bench.foundation.seeds import normal
from bench.registry import metrics
from bench.report.statistics import interval

COPIES, QUERIES = 15, 6
LEVELS = (0.0, 0.3, 5.0)
LONGER = {"num_steps": 100}
"""How the models of the board are trained: one that has hardly begun loses little with any 15 images."""
MUST_LEAD = {
    "pixel": {},
    "nda": {},
    "trak": {},
    "d_trak": {},
    "das": {},
    "ours": {"query_rise": 0.05},
    "ours_ekfac": {},
}
"""Not ``journey_trak``: it looks at the trajectory from the query's noise, not at the picture (``self_rank``)."""


@dataclass(frozen=True, kw_only=True)
class Planted(Method):
    """1 for the copies of the query and 0 for the rest, plus noise of a standard deviation."""

    name: ClassVar[str] = "planted"
    summary: ClassVar[str] = "the truth plus noise"
    level: float = 0.0

    def scores(self, context, queries):
        ids = context.dataset.ids
        return torch.stack(
            [
                torch.tensor([float(image.startswith(f"copy-{query.id}-")) for image in ids])
                + self.level * normal((len(ids),), "planted", str(self.level), query.id)
                for query in queries
            ]
        )


@pytest.fixture(autouse=True)
def registered():
    """``planted`` is a method here alone."""
    methods.register(Planted)
    yield
    methods._classes.pop("planted")


def with_copies(plain, queries, images):
    """The study with every query's picture 15 times in its training set."""
    old = plain.dataset
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    planted = replace(plain, budgets=(COPIES,))
    planted.__dict__["dataset"] = Dataset(
        name="planted",
        ids=old.ids + tuple(f"copy-{query.id}-{number}" for query in queries for number in range(COPIES)),
        captions=old.captions + tuple(query.prompt for query in queries for _ in range(COPIES)),
        concepts=old.concepts + ("",) * COPIES * QUERIES,
        styles=old.styles + ("",) * COPIES * QUERIES,
        images=torch.cat([old.images, pixels.repeat_interleave(COPIES, 0)]),
    )
    return planted


def plant(root, **recipe):
    """A workspace whose model was trained on the copies, and the queries that they are copies of."""
    tiny = study("tiny")
    plain = replace(tiny, recipe=replace(tiny.recipe, **recipe))
    with compute_threads(1):
        before = Run(study=plain, methods=[], num_queries=QUERIES, results=root / "before").open()
        queries = before.queries(plain.queries(QUERIES))
        the_study = with_copies(plain, queries, torch.stack(before.images(queries)))
        workspace = Run(study=the_study, methods=[], num_queries=QUERIES, results=root / "after").open()
        save_queries(workspace.store, {query.id: query for query in queries})
    return the_study, workspace, queries


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """As ``tiny`` is trained."""
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("name", MUST_LEAD)
def test_copies_of_the_query_lead_in_every_method(planted, name):
    the_study, workspace, queries = planted
    method = methods.create(name, "tiny", **MUST_LEAD[name])
    ids = the_study.dataset.ids
    found = []
    for query, scores in zip(queries[:2], workspace.scores(method, queries[:2]).matrix, strict=True):
        found += [ids[index].startswith(f"copy-{query.id}-") for index in top_k(scores, ids, COPIES)]
    by_chance = COPIES / len(ids)
    assert np.mean(found) > 8 * by_chance  # 0.41, where 0.05 are found by chance


@pytest.mark.slow
def test_a_board_ranks_noisy_copies_of_the_truth_in_the_order_of_their_noise(tmp_path):
    the_study, workspace, _ = plant(tmp_path, **LONGER)
    levels = [Planted(level=level) for level in LEVELS]
    report = Run(
        study=the_study, methods=levels, floors=["random"], num_queries=QUERIES, results=workspace.store.root,
        metrics=[metrics.create("loss_change")],
    ).execute()  # fmt: skip
    assert not report.failures
    assert not report.skipped
    frame = report.frame[report.frame["design"] == "paired"]
    values = frame.pivot(index="query", columns="method_digest", values="value")
    clean, noisy, blind = (values[level.digest] for level in levels)
    random = values[methods.create("random").digest]
    assert clean.mean() > noisy.mean() > blind.mean()
    assert interval((clean - blind).to_numpy()).low > 0
    assert interval((clean - random).to_numpy()).low > 0
