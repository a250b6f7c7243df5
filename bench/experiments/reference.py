"""The random reference: how the model changes when random images are left out, from few up to nearly all.

    ΔL_ref(K) = mean over queries and draws of L(ẑ, θ_s^−R) − L(ẑ, θ_s),   R = K random images, a set for each draw

A removal is drawn for (study seed, draw, K), never for a query: its model is evaluated on all queries, and all methods
are compared with the same curve. Reference: arXiv 2406.09408, section 5.1 (10 models for each K, from 500 images to N).
OURS: the paired design (``bench.experiments.evaluation``); the spacing of the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.contracts import Method
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments.evaluation import Comparison
from bench.experiments.leave_k_out import Controls, Run, Selections
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.records.rows import REFERENCE
from bench.studies import Study

POINTS = 8
SMALLEST_LEFT = 0.01
"""Of D, at the last point."""


@dataclass(frozen=True, kw_only=True)
class Reference(Run):
    """A run that removes random images; ``methods`` is not used.

    Attributes:
        models: how many draws at each K.
    """

    methods: Sequence[Method] = ()
    models: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models < 1:
            raise InvalidInput(f"--models {self.models}: at least 1 is expected.")
        if self.held_out:
            raise InvalidInput("The random reference is measured on the reported queries.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The budgets given, else the sweep of the study."""
        return tuple(sorted(set(self.budgets))) or sweep(self.study)

    @property
    def with_floor(self) -> list[Method]:
        """None: nothing is scored."""
        return []

    @property
    def run_facts(self) -> dict[str, Any]:
        """How many draws."""
        return {"reference_models": self.models}

    def compare(
        self, workspace: Workspace, queries: Sequence[Query], selections: Selections, controls: Controls
    ) -> list[Comparison]:
        """Every draw at every K, against the original model, for every query."""
        pairs = self.seed_pairs()
        return [
            Comparison(
                REFERENCE,
                draw_digest(draw),
                query,
                k,
                TrainingJob(random_removal(self.study, draw, k), retrained),
                TrainingJob((), original),
                0.0,
                controls.get(query.id, ()),
            )
            for k in self.ks
            for draw in range(self.models)
            for query in queries
            for retrained, original in pairs
        ]


def sweep(study: Study) -> tuple[int, ...]:
    """The default K: POINTS values, evenly spaced in the log of the images left, from the study's smallest budget on.

    Losses fall about evenly in the log of the training set's size, so that is where the curve bends.
    """
    count, first = len(study.dataset), min(study.budgets)
    left = np.geomspace(count - first, SMALLEST_LEFT * count, POINTS)[1:]
    return tuple(sorted({first, *(count - int(float(f"{images:.2g}")) for images in left)}))


def random_removal(study: Study, draw: int, k: int) -> tuple[int, ...]:
    """The ``k`` images that ``draw`` removes, as ascending indices; a function of study seed, draw, K and ids."""
    return drawn(study.dataset, k, "random-reference", study.seed, draw, k)


def draw_digest(draw: int) -> str:
    """Names a draw in the column ``method_digest``."""
    return digest_of([REFERENCE, draw])
