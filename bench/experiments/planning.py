"""What a run would do, before it spends anything: retrainings, what is cached, time, disk, and what it could show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from bench.contracts import Method
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query, QuerySpec, load_queries
from bench.diffusion.training import TrainingJob
from bench.experiments.evaluation import Comparison
from bench.experiments.leave_k_out import Run, Selections, requests_of
from bench.experiments.throughput import Throughput, here, recorded
from bench.experiments.workspace import Workspace
from bench.records import folder
from bench.records import rows as results
from bench.registry import is_variant
from bench.report.statistics import CONFIDENCE, MIN_QUERIES, families, queries_needed
from bench.retraining.ledger import Request

SAMPLED_RECORDS = 20
USUAL_BYTES = 1600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a run.

    Attributes:
        asked: retrained models that the comparisons ask for, if none were shared.
        trainings: different models, originals included; at most, as removal sets that are not known yet may be equal.
        cached: how many of them are trained and observed.
        to_train: how many must be trained, some perhaps again because their weights were deleted.
        original_again: whether the original is one of these for its weights alone, which scoring needs.
        to_observe: how many are trained and miss observations only.
        to_score: (method, query) pairs whose scores are missing.
        scoring_seconds: for these, as far as it is known from other queries.
        unknown_scoring: methods whose scoring time is not known.
        times: wall seconds of training and observing on each machine kind, the machine at hand first; empty where
            nothing is left to do.
        model_mib: disk for one model, models_mib: for all that will be kept, records_mib: for the observations.
        power: what could be seen with how many queries, in words.
        skipped: methods and metrics that cannot run here, with the reason.
    """

    asked: int
    trainings: int
    cached: int
    to_train: int
    original_again: bool
    to_observe: int
    to_score: int
    scoring_seconds: float
    unknown_scoring: Sequence[str]
    times: Sequence[tuple[Throughput, float]]
    model_mib: float
    models_mib: float
    records_mib: float
    power: Sequence[str]
    skipped: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """Estimated wall time here."""
        return self.scoring_seconds + (self.times[0][1] if self.times else 0.0)

    def lines(self) -> list[str]:
        """For people."""
        unknown = f", not known yet for {', '.join(self.unknown_scoring)}" if self.unknown_scoring else ""
        return [
            f"retrainings: {self.asked} asked, {self.trainings} models after sharing (at most, with the original ones)",
            f"models: {self.cached} cached, {self.to_observe} to observe only, {self.to_train} to train"
            + (", among them the original again, whose weights are not here" if self.original_again else ""),
            f"scores: missing for {self.to_score} (method, query) pairs, about {_words(self.scoring_seconds)}{unknown}",
            *(
                f"time {'here' if index == 0 else 'on'} {speed.machine}, {speed.layout}: about {_words(seconds)} "
                f"({speed.training_seconds:.3g} s a training, {speed.source})"
                for index, (speed, seconds) in enumerate(self.times)
            ),
            f"disk: {self.models_mib:.1f} MiB of models (older ones are deleted beyond --keep-models-mib), "
            f"{self.records_mib:.1f} MiB of records",
            *self.power,
            *(f"skipped {name}: {why}" for name, why in self.skipped.items()),
        ]


def plan(run: Run, *, effect: float | None = None) -> Plan:
    """What ``run`` would train, without training or scoring anything.

    Args:
        run: to plan.
        effect: a difference of the run's first metric, to say how many queries it takes to see it.
    """
    workspace = run.open()
    ledger = workspace.ledger
    kept = load_queries(workspace.store)
    queries = [_query(kept, spec, workspace) for spec in run.specs]
    controls = {q.id: tuple(_query(kept, spec, workspace) for spec in run.control_specs(q)) for q in queries}
    reasons = {method: method.unavailable() for method in run.with_floor}
    methods = [method for method, why in reasons.items() if not why]
    selected = _selections(run, workspace, methods, queries)
    comparisons = run.compare(workspace, queries, selected, controls)
    requests = requests_of(comparisons) + _lone_originals(run, methods, queries, comparisons)

    unscored = {m: [q for q in queries if not workspace.is_selected(m, q, max(run.ks))] for m in methods}
    unknown = sum(len(missing) for missing in unscored.values()) * len(run.ks) * len(run.seed_pairs())
    missing = [request for request in requests if ledger.missing(request)]
    to_observe = [request for request in missing if ledger.is_trained(request.job)]
    to_train = [request for request in missing if not ledger.is_trained(request.job)]
    needs_original = any(unscored.values()) or any(query.id not in kept for query in queries)
    original = workspace.original_job()
    again = needs_original and not ledger.is_trained(original) and original not in {each.job for each in to_train}

    known = recorded(workspace)
    unknown_request = Request(original, tuple(queries[:1]), next(iter(controls.values()), ()))
    pairs = [_pairs(workspace, request) for request in missing]
    pairs += [_pairs(workspace, unknown_request, fresh=True)] * unknown
    trained_count = len(to_train) + unknown + again
    workers = max(1, min(run.workers, len(missing) + unknown))
    speeds = [here(workspace, workers, run.threads, known)] if trained_count or missing else []
    speeds += [one for one in known if speeds and one is not speeds[0]]
    scoring, unknown_scoring = _scoring(run, workspace, unscored)
    model_mib = sum(weight.numel() for weight in DiffusionModel(run.study.model).unet.parameters()) * 4 / 2**20
    return Plan(
        asked=len(comparisons) + unknown,
        trainings=len(requests) + unknown,
        cached=len(requests) - len(missing),
        to_train=trained_count,
        original_again=again,
        to_observe=len(to_observe),
        to_score=sum(len(some) for some in unscored.values()),
        scoring_seconds=scoring,
        unknown_scoring=unknown_scoring,
        times=[(speed, _seconds(speed, trained_count, pairs)) for speed in speeds],
        model_mib=model_mib,
        models_mib=min(trained_count * model_mib, run.size_limit_mib),
        records_mib=sum(sum(each.values()) for each in pairs) * _bytes_of_an_observation(workspace) / 2**20,
        power=[] if effect is None else _power(run, workspace, methods, effect),
        skipped={run.label(method): why for method, why in reasons.items() if why}
        | {metric.name: why for metric in run.metrics if (why := metric.unavailable())},
    )


def _query(kept: Mapping[str, Query], spec: QuerySpec, workspace: Workspace) -> Query:
    """The query of ``spec``; where it is to come, a stand-in for which nothing has been observed."""
    model = workspace.study.model
    nothing = torch.zeros(model.latent_channels, model.sample_size, model.sample_size)
    return kept.get(spec.id) or Query(spec.id, spec.prompt, spec.seed, nothing, nothing, workspace.study.sampler)


def _selections(run: Run, workspace: Workspace, methods: Sequence[Method], queries: Sequence[Query]) -> Selections:
    """The top K that are known without scoring."""
    known = {m: [query for query in queries if workspace.is_selected(m, query, max(run.ks))] for m in methods}
    return {method: workspace.selections(method, some, run.ks) for method, some in known.items() if some}


def _lone_originals(
    run: Run, methods: Sequence[Method], queries: Sequence[Query], comparisons: Sequence[Comparison]
) -> list[Request]:
    """Originals of further seeds, which comparisons that are not known yet will need."""
    named = {each.original for each in comparisons} | {each.retrained for each in comparisons}
    jobs = [TrainingJob((), seed) for _, seed in run.seed_pairs()] if methods else []
    return [Request(job, tuple(queries)) for job in dict.fromkeys(jobs) if job not in named]


def _pairs(workspace: Workspace, request: Request, *, fresh: bool = False) -> dict[str, int]:
    """How many queries each observation is missing for; all of them where the model is ``fresh``."""
    if not fresh:
        missing = workspace.ledger.missing(request)
        return {name: sum(one.name == name for _, one in missing) for name in workspace.ledger.observations}
    others = workspace.ledger.on_controls
    return {
        name: len(request.queries) + len(request.controls) * (name in others) for name in workspace.ledger.observations
    }


def _seconds(speed: Throughput, trainings: int, pairs: Sequence[Mapping[str, int]]) -> float:
    """Wall time: whole rounds of trainings, as the last round takes as long as any, and an even share of observing."""
    workers = max(1, speed.workers)
    observing = sum(speed.observing(name, count) for each in pairs for name, count in each.items())
    start = speed.start_seconds if trainings or observing else 0.0
    return start + math.ceil(trainings / workers) * speed.training_seconds + observing / workers


def _scoring(run: Run, workspace: Workspace, unscored: Mapping[Method, Sequence[Query]]) -> tuple[float, list[str]]:
    """Seconds that the missing scores will take, by what other queries took, and the methods that have none."""
    total, unknown = 0.0, []
    for method, queries in unscored.items():
        seconds = workspace.usual_score_seconds(method)
        if queries and math.isnan(seconds):
            unknown.append(run.label(method))
        elif queries:
            total += seconds * len(queries)
    return total, unknown


def _bytes_of_an_observation(workspace: Workspace) -> float:
    """The mean size, by the records that are there; else that of losses at 200 timesteps with a small image."""
    paths = folder.observations(workspace.store.root)[:SAMPLED_RECORDS]
    records = [
        found[0] for path in paths if (found := workspace.store.tensors(*path.relative_to(workspace.store.root).parts))
    ]
    count = sum(len(record) for record in records)
    return sum(path.stat().st_size for path in paths if path.exists()) / count if count else USUAL_BYTES


def _power(run: Run, workspace: Workspace, methods: Sequence[Method], effect: float) -> list[str]:
    """At each K, how many queries it takes to see ``effect`` between two methods, by the deviations measured so far.

    The significance is shared out among the pairs of the plan's methods, as the leaderboard does.
    """
    metric = run.metrics[0]
    labels = [run.label(method) for method in methods]
    asked = families(labels, [label for label in labels if is_variant(label)])
    share = {frozenset(pair): (1 - CONFIDENCE) / len(pairs) for pairs in asked for pair in pairs}
    frame = results.load(workspace.store)
    rows = frame[(frame["metric"] == metric.name) & (frame["status"] == "done") & (frame["design"] == "paired")]
    lines = []
    for k in run.ks:
        own = rows[(rows["k"] == k) & rows["method"].isin(labels)]
        found = _deviations(own.pivot_table(index="query", columns="method", values="value"))
        head = f"to see {effect:g} of {metric.name} at K = {k}"
        if not found:
            lines.append(f"{head}: cannot be told, no two of these methods have {MIN_QUERIES} common queries yet")
            continue
        needs = sorted(
            (float(queries_needed(effect, deviation, significance=share[frozenset(pair)]) or math.inf), deviation, pair)
            for pair, deviation in found.items()
        )
        middle, worst = needs[len(needs) // 2], needs[-1]
        lines.append(
            f"{head}: {_count(middle[0])} (median of {len(needs)} pairs), {_count(worst[0])} for "
            f"{worst[2][0]} and {worst[2][1]}, whose differences deviate by {worst[1]:.2g}"
        )
    return lines


def _deviations(per_query: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Standard deviation over queries of the differences of each pair that has enough of them."""
    pairs = {
        (one, other): (per_query[one] - per_query[other]).dropna()
        for one, other in itertools.combinations(per_query.columns, 2)
    }
    return {pair: float(values.std()) for pair, values in pairs.items() if len(values) >= MIN_QUERIES}


def _count(queries: int | float) -> str:
    return "no feasible number of queries" if math.isinf(queries) else f"{queries:.0f} queries"


def _words(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
