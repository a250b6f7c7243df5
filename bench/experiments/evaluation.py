"""Stage 7, the metrics: what the leave-K-out model does with the query against what the original did.

A removal is judged by models of another seed than θ0, the model that made the query: θ0 fits its own image better than
any other model does, whatever was removed, and every value against it would carry that advantage. Three values follow
from two trainings, of θ_s on all of D and of θ_s^−K without the K images, s an evaluation seed:

    unpaired   m(θ_s^−K) − m(θ0)     the paper's own design
    floor      m(θ_s) − m(θ0)        nothing removed, another seed
    paired     m(θ_s^−K) − m(θ_s)    unpaired − floor: same initial weights, same draws, the removal the only difference
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.contracts import Metric
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.errors import reason_of
from bench.records.names import MethodName
from bench.records.rows import Row
from bench.retraining.ledger import Ledger
from bench.studies import Study

Observed = Mapping[str, Tensor]

EVALUATION_SEED = 1
"""Seeds of the models that judge removals count from the study's plus this."""


def evaluation_seed(study: Study, index: int = 0) -> int:
    """Seed of the ``index``-th pair of models that judges removals."""
    return study.seed + EVALUATION_SEED + index


@dataclass(frozen=True)
class Comparison:
    """A retrained model to be compared with an original one, for one query.

    Attributes:
        named: what chose the images to remove, or NOTHING_REMOVED for the floor.
        method_digest: of the method with its settings, "" for the floor.
        query: for which.
        k: how many images were removed.
        retrained, original: the two models' jobs.
        score_seconds: what choosing cost.
        controls: queries with other prompts, for metrics that are relative to them.
    """

    named: MethodName
    method_digest: str
    query: Query
    k: int
    retrained: TrainingJob
    original: TrainingJob
    score_seconds: float
    controls: tuple[Query, ...] = ()

    @property
    def design(self) -> str:
        """ "paired" where both models share their seed."""
        return "paired" if self.retrained.seed == self.original.seed else "unpaired"


def evaluate(
    ledger: Ledger,
    comparisons: Iterable[Comparison],
    metrics: Iterable[Metric],
    failures: Mapping[TrainingJob, str],
) -> list[Row]:
    """A row for each comparison and metric; a model that failed to train gives rows that say why."""
    kept: dict[TrainingJob, tuple[Observed, Mapping[str, str]]] = {}

    def observed(job: TrainingJob) -> tuple[Observed, Mapping[str, str]]:
        if job not in kept:
            kept[job] = ledger.observed(job)
        return kept[job]

    chosen = list(metrics)
    return [
        _row(
            ledger,
            comparison,
            metric,
            observed(comparison.original)[0],
            *observed(comparison.retrained),
            failures,
        )
        for comparison in comparisons
        for metric in chosen
    ]


def facts_of(study: str, study_digest: str, query: Query, method_digest: str, score_seconds: float) -> dict[str, Any]:
    """What every row tells of the query that was scored, by the names of its columns."""
    return {
        "study": study, "study_digest": study_digest, "method_digest": method_digest, "query": query.id,
        "query_digest": query.digest, "prompt": query.prompt, "score_seconds": score_seconds,
    }  # fmt: skip


def value_of(
    metric: Metric, query: Query, controls: Sequence[Query], original: Observed, retrained: Observed
) -> tuple[float, str]:
    """The metric's value, relative to controls where it asks for that, and why there is none."""

    def value(one: Query) -> float:
        name = one.observed_as(metric.observation.name)
        return metric.value(one, original[name], retrained[name])

    if metric.relative_to_controls and not controls:
        return math.nan, "no query of the study has another prompt to serve as a control"
    found = value(query)
    if metric.relative_to_controls:
        found -= statistics.fmean(value(control) for control in controls)
    return found, "" if math.isfinite(found) else f"the metric is {found}"


def _needed(metric: Metric, comparison: Comparison) -> list[Query]:
    """The queries that the metric looks at."""
    return [comparison.query, *(comparison.controls if metric.relative_to_controls else ())]


def _row(
    ledger: Ledger,
    comparison: Comparison,
    metric: Metric,
    original: Observed,
    retrained: Observed,
    facts: Mapping[str, str],
    failures: Mapping[TrainingJob, str],
) -> Row:
    query = comparison.query
    wanted = {one.observed_as(metric.observation.name) for one in _needed(metric, comparison)}
    there = wanted <= original.keys() and wanted <= retrained.keys()
    reason = "" if there else failures.get(comparison.retrained) or failures.get(comparison.original) or "not observed"
    value = math.nan
    if not reason:
        try:
            value, reason = value_of(metric, query, comparison.controls, original, retrained)
        except (Exception, SystemExit) as error:  # its own row is lost, those of others are not
            reason = reason_of(error)
    study = ledger.study
    return Row(
        **facts_of(study.name, study.digest, query, comparison.method_digest, comparison.score_seconds),
        method=comparison.named.method,
        variant=comparison.named.variant,
        settings=comparison.named.settings,
        k=comparison.k,
        metric=metric.name,
        evaluator=metric.digest,
        design=comparison.design,
        seed=comparison.retrained.seed,
        value=value,
        status="failed" if reason else "done",
        reason=reason,
        model_key=ledger.key(comparison.retrained),
        train_seconds=float(facts.get("seconds", math.nan)),
        machine=facts.get("machine", ""),
    )
