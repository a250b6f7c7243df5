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

import pandas as pd
import torch

from bench.attribution.dimensions import DIMENSIONS, IMAGES, Choice, agreement, among, choice_key
from bench.attribution.influence import InfluenceMethod
from bench.attribution.projection import AUTO, EXACT, KINDS
from bench.contracts import Method
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.experiment import Experiment, Measured, check_count
from bench.experiments.left_out import LeftOut
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.records import folder, tables
from bench.records.store import Store, write_whole
from bench.registry import named
from bench.report.projections import ProjectionReport
from bench.studies import Study


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
        projecting = [each for each in self.methods if isinstance(each, InfluenceMethod) and each.projection in KINDS]
        if len(projecting) < len(self.methods):
            others = ", ".join(self.label(each) for each in self.methods if each not in projecting)
            raise InvalidInput(
                f"{others}: no gradients are projected, or to a dimension that is measured anyway; name methods such "
                "as trak, d_trak or das."
            )
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
            return setting.scores(among(workspace.context(advance), images), queries)

        exact = scores(replace(method, projection=EXACT), "not projected")
        for dimension in sorted({*self.dimensions, method.projection_dim}):
            setting = replace(method, projection_dim=dimension)
            found = scores(setting, f"{dimension} dimensions")
            measured = Choice(dimension, agreement(found, exact), len(images))
            own = dimension == method.projection_dim
            asked = [(query.id, query.digest) for query in queries]
            lines += _told(self.study, method, setting.digest, measured, asked, own=own)
        return lines


def keep_choices(workspace: Workspace, methods: Sequence[Method]) -> None:
    """Keep what ``projection=auto`` of ``methods`` chose on this study in the folder's table, where it is known."""
    for method in methods:
        found = kept_choice(workspace.store, method)
        if found is not None:
            assert isinstance(method, InfluenceMethod)
            probes = [(f"probe-{number}",) * 2 for number in range(len(found.agreement))]
            lines = _told(workspace.study, method, method.digest, found, probes, own=True)
            tables.PROJECTION.merge(workspace.store, pd.DataFrame(lines))


def kept_choice(store: Store, method: Method) -> Choice | None:
    """What ``projection=auto`` of ``method`` chose in ``store``; None for other projections, and before it chose."""
    if not isinstance(method, InfluenceMethod) or method.projection != AUTO:
        return None
    kept = store.tensors(*folder.artifact(choice_key(method)))
    return None if kept is None else Choice.of(kept[0])


def _told(
    study: Study, method: Method, digest: str, found: Choice, asked: Sequence[tuple[str, str]], *, own: bool
) -> list[Mapping[str, object]]:
    """The table's lines of one dimension, one for each query (its id and digest)."""
    return [
        {
            "study": study.name, "study_digest": study.digest, **asdict(named(method, study.name)),
            "method_digest": digest, "query": query, "query_digest": query_digest, "dimension": found.dimension,
            "images": found.images, "own": own, "spearman": rho, "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        for (query, query_digest), rho in zip(asked, found.agreement.tolist(), strict=True)
    ]  # fmt: skip
