"""Does a method agree with itself? Score every query twice, with all noise drawn anew, and compare the two rankings.

A method that ranks by its own noise is undersampled, not bad: more draws, timesteps or dimensions would mend it. Two
figures say how far it is from that: the share of the top K that both scorings name, and the rank correlation of all
scores. Chance has K / N of the top K in common; a method without randomness has all.

The model, the data and the queries are the same in both; the second scoring has another seed for everything that the
method draws. Ours: no paper on attribution for diffusion models reports it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import pandas as pd
from scipy import stats

from bench.contracts import METHOD, Method
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.experiment import Experiment, Measured
from bench.experiments.left_out import LeftOut
from bench.experiments.scoring import Scores, score
from bench.experiments.selection import top_k
from bench.experiments.workspace import Workspace
from bench.records import folder, tables
from bench.records.store import Artifacts, Store, write_whole
from bench.registry import named
from bench.report.reliability import ReliabilityReport

AGAIN_SEED = 5000
"""The seed of the second scoring counts from the study's plus this."""


@dataclass(frozen=True, kw_only=True)
class Reliability(Experiment[ReliabilityReport]):
    """Two scorings of every method.

    Attributes:
        methods: to try; floors and ceilings draw nothing that could be drawn again.
        budgets: the K whose top images are compared; the study's by default.
    """

    methods: Sequence[Method]
    budgets: Sequence[int] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        super().__post_init__()
        for k in self.ks:
            self.study.check_budget(k)
        if others := [self.label(method) for method in self.methods if method.role != METHOD]:
            raise InvalidInput(f"{', '.join(others)}: no method but a floor or ceiling; leave it out.")

    @property
    def ks(self) -> list[int]:
        """The K, ascending."""
        return sorted(set(self.budgets or self.study.budgets))

    def vet(self, workspace: Workspace) -> None:
        """Try every method before anything is scored."""
        workspace.vet(self.methods)

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Nothing is retrained; what is to be scored."""
        lost = LeftOut(workspace, ahead)
        unscored = self.unscored(workspace, lost, self.methods, queries)
        return Chosen(comparisons=[], unscored=unscored, skipped=lost.skipped, failures=lost.failed)

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> ReliabilityReport:
        """Score twice, and compare; merged into the folder's table, method by method."""
        lost = LeftOut(workspace)
        for method in design.chosen.unscored:
            with lost.alone(self.label(method), f"method-{method.name}"):
                first = workspace.scores(method, design.queries)
                second = self._again(workspace, method, design.queries)
                lines = pd.DataFrame(self._lines(method, design.queries, first, second))
                tables.RELIABILITY.merge(workspace.store, lines)
        report = ReliabilityReport(
            frame=tables.RELIABILITY.labelled(workspace.store),
            num_images=len(self.study.dataset),
            skipped={**design.chosen.skipped, **lost.skipped},
            failures={**design.chosen.failures, **lost.failed},
        )
        table = workspace.store.path(folder.RELIABILITY_TABLE)
        write_whole(table, report.markdown().encode())
        workspace.store.list_digests([table])
        return report

    def _again(self, workspace: Workspace, method: Method, queries: Sequence[Query]) -> Scores:
        """Scores with other draws, kept in a folder of their own."""
        store = Store(workspace.store.path(*folder.again()), note=workspace.progress.say, study=workspace.study.digest)
        artifacts = Artifacts(store)
        advance = partial(workspace.progress.advance, f"score again with {self.label(method)}")
        redrawn = replace(workspace.context(advance, artifacts), seed=self.study.seed + AGAIN_SEED)
        return score(method, queries, store, artifacts, lambda: redrawn)

    def _lines(
        self, method: Method, queries: Sequence[Query], first: Scores, second: Scores
    ) -> list[Mapping[str, object]]:
        ids, facts = self.study.dataset.ids, asdict(named(method, self.study.name))
        lines: list[Mapping[str, object]] = []
        for index, query in enumerate(queries):
            one, other = first.matrix[index], second.matrix[index]
            ranks = float(stats.spearmanr(one.numpy(), other.numpy()).statistic) if len(set(one.tolist())) > 1 else 0.0
            for k in self.ks:
                shared = len({*top_k(one, ids, k)} & {*top_k(other, ids, k)}) / k
                lines.append(
                    {
                        "study": self.study.name, "study_digest": self.study.digest, **facts,
                        "method_digest": method.digest, "query": query.id, "query_digest": query.digest, "k": k,
                        "shared": shared, "spearman": ranks, "seconds": first.seconds[index],
                        "date": time.strftime("%Y-%m-%d", time.gmtime()),
                    }
                )  # fmt: skip
        return lines
