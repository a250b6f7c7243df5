"""What an experiment would do, before it spends anything: trainings, what is cached, time, disk, what it could show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.contracts import CEILING, FLOOR, Method
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.errors import Unavailable
from bench.experiments.design import Design
from bench.experiments.experiment import Experiment
from bench.experiments.leave_k_out import Run
from bench.experiments.left_out import LeftOut
from bench.experiments.throughput import Throughput, here, recorded
from bench.experiments.until_settled import SEEN_SO_FAR, UntilSettled
from bench.experiments.workspace import Workspace
from bench.records import folder
from bench.records import rows as results
from bench.registry import named
from bench.report.looks import forecast, predicted
from bench.report.shown import Report, Table
from bench.report.statistics import CONFIDENCE, MIN_QUERIES, queries_needed
from bench.report.verdicts import families
from bench.retraining.ledger import Request

SAMPLED_RECORDS = 20
USUAL_BYTES = 1600.0


@dataclass(frozen=True, kw_only=True)
class Plan(Report):
    """The cost of an experiment.

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
        failed: those that raised when they were asked for it.
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
    failed: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """Estimated wall time here."""
        return self.scoring_seconds + (self.times[0][1] if self.times else 0.0)

    def tables(self) -> list[Table]:
        """None."""
        return []

    def problems(self) -> list[str]:
        """The methods and metrics that failed."""
        return [f"{name} failed: {why}" for name, why in self.failed.items()]

    def notes(self) -> list[str]:
        """What it takes, in lines."""
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


def plan(experiment: Experiment[Any], *, effect: float | None = None) -> Plan:
    """What ``experiment`` would train, by its own design, without training or scoring anything.

    Args:
        experiment: to plan.
        effect: a difference of the first metric, to say how many queries it takes to see it.
    """
    workspace = experiment.open()
    design = experiment.design(workspace, ahead=True)
    chosen, ledger, original = design.chosen, workspace.ledger, workspace.original_job()
    missing = [request for request in design.requests if ledger.missing(request)]
    to_observe = [request for request in missing if ledger.is_trained(request.job)]
    to_train = [request for request in missing if not ledger.is_trained(request.job)]
    needs_original = any(chosen.unscored.values()) or not design.complete
    again = needs_original and not ledger.is_trained(original) and original not in {each.job for each in to_train}
    trained_count = len(to_train) + chosen.unknown + again
    pairs = [_pairs(workspace, request) for request in missing]
    pairs += [_pairs(workspace, _unknown_request(design, original), fresh=True)] * chosen.unknown
    scoring, unknown_scoring = _scoring(experiment, workspace, chosen.unscored)
    metrics = LeftOut(workspace, ahead=True)
    for metric in experiment.metrics:
        with metrics.alone(metric.name, f"metric-{metric.name}"):
            if why := metric.unavailable():
                raise Unavailable(why)
    model_mib = sum(weight.numel() for weight in DiffusionModel(experiment.study.model).unet.parameters()) * 4 / 2**20
    return Plan(
        asked=len(chosen.comparisons) + chosen.unknown,
        trainings=len(design.requests) + chosen.unknown,
        cached=len(design.requests) - len(missing),
        to_train=trained_count,
        original_again=again,
        to_observe=len(to_observe),
        to_score=sum(len(some) for some in chosen.unscored.values()),
        scoring_seconds=scoring,
        unknown_scoring=unknown_scoring,
        times=_times(experiment, workspace, trained_count, pairs),
        model_mib=model_mib,
        models_mib=min(trained_count * model_mib, experiment.size_limit_mib),
        records_mib=sum(sum(each.values()) for each in pairs) * _bytes_of_an_observation(workspace) / 2**20,
        power=([] if effect is None else _power(experiment, workspace, effect, list(chosen.unscored)))
        + _settling(experiment, workspace),
        skipped={**chosen.skipped, **metrics.skipped},
        failed={**chosen.failures, **metrics.failed},
    )


def _unknown_request(design: Design, original: TrainingJob) -> Request:
    """What a model that is not known yet will be observed on."""
    return Request(original, tuple(design.queries[:1]), next(iter(design.controls.values()), ()))


def _times(
    experiment: Experiment[Any], workspace: Workspace, trainings: int, pairs: Sequence[Mapping[str, int]]
) -> list[tuple[Throughput, float]]:
    """Wall seconds on each machine kind that is known, the machine at hand first; empty where nothing is left to do."""
    if not trainings and not pairs:
        return []
    known = recorded(workspace)
    workers = max(1, min(experiment.workers, max(trainings, len(pairs))))
    first = here(workspace, workers, experiment.threads, known)
    speeds = [first, *(one for one in known if one is not first)]
    return [(speed, _seconds(speed, trainings, pairs)) for speed in speeds]


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


def _scoring(
    experiment: Experiment[Any], workspace: Workspace, unscored: Mapping[Method, Sequence[Query]]
) -> tuple[float, list[str]]:
    """Seconds that the missing scores will take, by what other queries took, and the methods that have none."""
    total, unknown = 0.0, []
    for method, queries in unscored.items():
        seconds = workspace.usual_score_seconds(method)
        if queries and math.isnan(seconds):
            unknown.append(named(method, experiment.study.name).label)
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


def _power(experiment: Experiment[Any], workspace: Workspace, effect: float, methods: Sequence[Method]) -> list[str]:
    """At each K, how many queries it takes to see ``effect`` between two methods, by the deviations measured so far.

    The significance is shared out among the pairs of ``methods``, as the leaderboard does.
    """
    if not isinstance(experiment, Run):
        return ["how many queries a difference takes is told for leave-K-out runs alone"]
    run, metric = experiment, experiment.metrics[0]
    labels = [run.label(method) for method in methods]
    plain = [named(method, run.study.name).plain for method in methods]
    roles = [method.role if alone else "" for method, alone in zip(methods, plain, strict=True)]
    floors, apart = (
        [label for label, role in zip(labels, roles, strict=True) if role in some] for some in ((FLOOR,), ("", CEILING))
    )
    asked = families(labels, floors=floors, apart=apart)
    share = {frozenset(pair): (1 - CONFIDENCE) / len(pairs) for pairs in asked for pair in pairs}
    frame = results.load(workspace.store)
    frame = frame.assign(method=results.labels(frame))
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


def _settling(experiment: Experiment[Any], workspace: Workspace) -> list[str]:
    """When the order that a run adds queries for is settled, if the differences are as the rows so far have them."""
    if not isinstance(experiment, UntilSettled):
        return []
    limit = experiment.looks[-1].queries
    head = f"until settled ({experiment.order}) at K = {experiment.judged_k}, at most {limit} queries"
    found = experiment.standings(results.load(workspace.store))
    if not found:
        first = experiment.looks[0].queries
        return [f"{head}: cannot be told, the rows do not hold the first look ({first} queries) yet"]
    now = next((standing for standing in found if not standing.open), found[-1])
    if not now.open:
        return [f"{head}: settled at {now.look.queries} queries"]
    steps = [(now.look, len(now.asked) - len(now.open)), *predicted(now, experiment.study.looks)]
    listed = ", ".join(f"{done} at {look.queries}" for look, done in steps)
    takes = forecast(now, experiment.study.looks)
    return [f"{head}: {SEEN_SO_FAR} {takes}; of {len(now.asked)} pairs {listed} queries"]


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
