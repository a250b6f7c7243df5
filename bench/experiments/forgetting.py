"""Does unlearning forget the query and keep the rest? The unlearned model itself is looked at, nothing is retrained.

    forgotten = m(query, θ_−ẑ, θ0)          kept = mean over other prompts of m(other, θ_−ẑ, θ0)

Attribution by unlearning rests on it: where other prompts are lost as well, the rise of a training image's loss says
more of general damage than of the query. The metrics m are those that compare retrained models. Reference:
arXiv 2406.09408 (NeurIPS 2024), Table 3: 40 queries and 99 other prompts; here the study's controls, other queries with
other prompts (``Study.controls``).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from torch import Tensor, nn

from bench.attribution.unlearning import Unlearning
from bench.contracts import AttributionContext, Method, Metric
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query, QuerySpec
from bench.errors import InvalidInput, Unavailable
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.experiment import Experiment, Measured
from bench.experiments.left_out import LeftOut
from bench.experiments.workspace import Workspace
from bench.records import folder, tables
from bench.records.store import write_whole
from bench.registry import named
from bench.report.forgetting import ForgettingReport

Observed = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Forgetting(Experiment[ForgettingReport]):
    """What the unlearned models of some methods lost.

    Attributes:
        methods: to look at; those that do not unlearn are skipped.
    """

    methods: Sequence[Method]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(isinstance(method, Unlearning) for method in self.methods):
            raise InvalidInput(f"{', '.join(map(self.label, self.methods))}: none of them unlearns; try ours.")
        if relative := [metric.name for metric in self.metrics if metric.relative_to_controls]:
            raise InvalidInput(
                f"{', '.join(relative)}: other prompts are looked at anyway; name a metric without them."
            )

    def vet(self, workspace: Workspace) -> None:
        """Try every method before anything is unlearned."""
        workspace.vet(self.methods)

    def control_specs(self, query: Query | QuerySpec) -> list[QuerySpec]:
        """The other prompts."""
        return self.study.controls(query)

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Nothing is retrained; who unlearns, and what."""
        lost = LeftOut(workspace, ahead)
        unscored: dict[Method, Sequence[Query]] = {}
        for method in self.methods:
            with lost.alone(self.label(method), f"method-{method.name}"):
                if not isinstance(method, Unlearning):
                    raise Unavailable("it does not unlearn")
                workspace.require(method, ahead=ahead)
                unscored[method] = queries
        return Chosen(comparisons=[], unscored=unscored, skipped=lost.skipped, failures=lost.failed)

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> ForgettingReport:
        """Unlearn every query that is not in the folder's table yet, and observe."""
        lost = LeftOut(workspace)
        kept = tables.FORGETTING.read(workspace.store)
        for method in design.chosen.unscored:
            with lost.alone(self.label(method), f"method-{method.name}"):
                assert isinstance(method, Unlearning)
                for query in design.queries:
                    if not self._is_there(kept, method, query, measured.metrics):
                        others = design.controls.get(query.id, ())
                        lines = self._lines(workspace, method, query, others, measured.metrics)
                        kept = tables.FORGETTING.merge(workspace.store, pd.DataFrame(lines))
        report = ForgettingReport(
            frame=tables.FORGETTING.labelled(workspace.store),
            skipped={**design.chosen.skipped, **lost.skipped, **measured.skipped_metrics},
            failures={**design.chosen.failures, **lost.failed, **measured.failed_metrics},
        )
        table = workspace.store.path(folder.FORGETTING_TABLE)
        write_whole(table, report.markdown().encode())
        workspace.store.list_digests([table])
        return report

    def _is_there(self, kept: pd.DataFrame | None, method: Method, query: Query, metrics: Sequence[Metric]) -> bool:
        if kept is None:
            return False
        own = kept[(kept["method_digest"] == method.digest) & (kept["query_digest"] == query.digest)]
        return {metric.digest for metric in metrics} <= set(own["evaluator"])

    def _lines(
        self,
        workspace: Workspace,
        method: Unlearning,
        query: Query,
        others: Sequence[Query],
        metrics: Sequence[Metric],
    ) -> list[dict[str, object]]:
        """A value of each metric for the query and for each other prompt."""
        workspace.progress.say(f"{self.label(method)}: unlearn {query.id} ({query.prompt})")
        context = workspace.context()
        asked = [query, *others]
        before = self._observed(context.model, asked, metrics)
        after = self._observed(unlearned(method, context, query), asked, metrics)
        shared = {
            "study": self.study.name, "study_digest": self.study.digest, **asdict(named(method, self.study.name)),
            "method_digest": method.digest, "query": query.id, "query_digest": query.digest, "prompt": query.prompt,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        return [
            shared
            | {
                "other": "" if one is query else one.id,
                "other_digest": one.digest,
                "metric": metric.name,
                "evaluator": metric.digest,
                "value": metric.value(one, before[key], after[key]),
            }
            for metric in metrics
            for one in asked
            for key in [one.observed_as(metric.observation.name)]
        ]

    def _observed(self, model: DiffusionModel, queries: Sequence[Query], metrics: Sequence[Metric]) -> Observed:
        found: dict[str, Tensor] = {}
        for observation in {metric.observation.name: metric.observation for metric in metrics}.values():
            seen = observation.observe(model, queries, self.study.seed)
            found |= {query.observed_as(observation.name): one for query, one in zip(queries, seen, strict=True)}
        return found


def unlearned(method: Unlearning, context: AttributionContext, query: Query) -> DiffusionModel:
    """θ_−ẑ as a model: a copy of θ0 with the U-Net that ``method`` scores by."""
    model = copy.copy(context.model)
    unet: nn.Module = method.unlearn(context, query, method.ascent(context))
    model.unet = unet.eval()
    return model
