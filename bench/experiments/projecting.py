"""How far is a random projection from the gradients themselves? Ranks by both, compared; nothing is retrained.

    agreement(d) = the mean over queries of Spearman's ρ between a method's scores with a projection to d dimensions and
                   with none, of the same images

All gradients of a large study do not fit the memory, so both are taken of the same random images alone: of all where
these are few. It says how much of a method's order is the random numbers of its projection, and which dimension would
be enough.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from scipy import stats

from bench.attribution.influence import InfluenceMethod
from bench.attribution.projection import EXACT
from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.experiment import Experiment, Measured, check_count
from bench.experiments.left_out import LeftOut
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.records import folder, tables
from bench.records.store import write_whole
from bench.registry import named
from bench.report.projections import ProjectionReport

DIMENSIONS = (256, 1024, 4096)
IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class ProjectionTest(Experiment[ProjectionReport]):
    """Scores with and without a projection.

    Attributes:
        methods: that project gradients; others are refused.
        dimensions: beside each method's own.
        images: how many, drawn by chance; all where there are fewer.
    """

    methods: Sequence[Method]
    dimensions: Sequence[int] = DIMENSIONS
    images: int = IMAGES
    own: Sequence[InfluenceMethod] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("images", self.images, most=1_000_000)
        projecting = [method for method in self.methods if isinstance(method, InfluenceMethod)]
        if len(projecting) < len(self.methods):
            others = ", ".join(each.name for each in self.methods if each not in projecting)
            raise InvalidInput(f"{others}: no gradients are projected; name methods such as trak, d_trak or das.")
        object.__setattr__(self, "own", projecting)

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Nothing is retrained."""
        return Chosen(comparisons=[])

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> ProjectionReport:
        """Score with every dimension and with none, compare, and keep."""
        images = drawn(self.study.dataset, min(self.images, len(self.study.dataset)), "projection", self.study.seed)
        lost = LeftOut(workspace)
        merged = tables.PROJECTION.read(workspace.store)
        for method in self.own:
            with lost.alone(self.label(method), f"method-{method.name}"):
                workspace.require(method)
                lines = pd.DataFrame(self._lines(workspace, method, design.queries, images))
                merged = tables.PROJECTION.merge(workspace.store, lines)
        report = ProjectionReport(
            frame=pd.DataFrame() if merged is None else merged, skipped=lost.skipped, failures=lost.failed
        )
        table = workspace.store.path(folder.PROJECTION_TABLE)
        write_whole(table, report.markdown().encode())
        workspace.store.list_digests([table])
        return report

    def _lines(
        self, workspace: Workspace, method: InfluenceMethod, queries: Sequence[Query], images: Sequence[int]
    ) -> list[Mapping[str, object]]:
        """A line for each dimension and query."""
        lines: list[Mapping[str, object]] = []

        def scores(setting: InfluenceMethod, what: str) -> torch.Tensor:
            advance = partial(workspace.progress.advance, f"{self.label(method)}, {what}")
            return setting.scores(_among(workspace.context(advance), images), queries)

        exact = scores(replace(method, projection=EXACT), "not projected")
        for dimension in sorted({*self.dimensions, method.projection_dim}):
            setting = replace(method, projection_dim=dimension)
            found = scores(setting, f"{dimension} dimensions")
            for query, one, other in zip(queries, found, exact, strict=True):
                lines.append(
                    {
                        "study": self.study.name, "study_digest": self.study.digest,
                        **asdict(named(method, self.study.name)), "method_digest": setting.digest, "query": query.id,
                        "query_digest": query.digest, "dimension": dimension, "images": len(images),
                        "own": dimension == method.projection_dim,
                        "spearman": float(stats.spearmanr(one.numpy(), other.numpy()).statistic),
                        "date": time.strftime("%Y-%m-%d", time.gmtime()),
                    }
                )  # fmt: skip
        return lines


def _among(context: AttributionContext, images: Sequence[int]) -> AttributionContext:
    """``context`` of these images alone, with artifacts of its own."""
    chosen, kept = torch.as_tensor(images), dict[str, dict[str, Any]]()

    def cached(key: str, build: Any) -> dict[str, Any]:
        if key not in kept:
            kept[key] = dict(build())
        return kept[key]

    return replace(context, dataset=context.dataset.only(images), data=context.data.only(chosen), cached=cached)
