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

from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.evaluation import Comparison
from bench.experiments.experiment import Measured, check_count
from bench.experiments.leave_k_out import Removals, RunReport, written
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.records.names import MethodName
from bench.records.rows import REFERENCE
from bench.studies import Study

POINTS = 8
SMALLEST_LEFT = 0.01
"""Of D, at the last point."""


@dataclass(frozen=True, kw_only=True)
class Reference(Removals[RunReport]):
    """Random images removed, the same for all methods.

    Attributes:
        models: how many draws at each K.
    """

    models: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("--models", self.models)

    @property
    def ks(self) -> tuple[int, ...]:
        """The budgets given, else the sweep of the study."""
        return tuple(sorted(set(self.budgets))) or sweep(self.study)

    @property
    def facts(self) -> dict[str, Any]:
        """Budgets, seeds, and how many draws."""
        return super().facts | {"reference_models": self.models}

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Every draw at every K, against the original model, for every query."""
        found = [
            Comparison(
                named=MethodName(REFERENCE),
                method_digest=draw_digest(draw),
                query=query,
                k=k,
                retrained=TrainingJob(random_removal(self.study, draw, k), retrained),
                original=TrainingJob((), original),
                score_seconds=0.0,
                controls=controls.get(query.id, ()),
            )
            for k in self.ks
            for draw in range(self.models)
            for query in queries
            for retrained, original in self.seed_pairs()
        ]
        return Chosen(comparisons=found)

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> RunReport:
        """The table with the curve, beside what else the folder has."""
        return written(self, workspace, design, measured)


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
