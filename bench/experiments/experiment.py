"""What every experiment is: a study, metrics, a workspace, and two calls of its own.

``comparisons`` says which models are compared for which query; ``report`` turns the rows into what people read. All
else is the same for all of them: to run it, to go on after an interruption, to plan it without spending anything.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from bench.contracts import Method, Metric
from bench.diffusion.queries import Query, QuerySpec, load_queries
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.evaluation import evaluate
from bench.experiments.left_out import LeftOut
from bench.experiments.workspace import Workspace
from bench.foundation.machine import available_threads, compute_threads
from bench.foundation.progress import Progress
from bench.records.rows import BASELINE, Row
from bench.records.store import Store
from bench.registry import floors as every_floor
from bench.registry import label_of
from bench.registry import methods as method_registry
from bench.registry import metrics as metric_registry
from bench.report.shown import Report
from bench.report.summary import check_evaluators
from bench.retraining.crews import check_engine
from bench.studies import Study

R = TypeVar("R", bound=Report)
MOST_WORKERS, MOST_MODELS, LARGEST_SEED = 1024, 1000, 2**53
"""Beyond these nothing would end, and seeds would meet those of ensembles."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What running a design gave, for the report.

    Attributes:
        rows: one for each comparison and metric.
        metrics: that could be computed.
        skipped_metrics: that cannot be computed here, with the reason.
        failed_metrics: that raised, with the reason.
        failed: reasons of the trainings that failed.
        seconds: wall time until here.
    """

    rows: Sequence[Row]
    metrics: Sequence[Metric]
    skipped_metrics: Mapping[str, str]
    failed: Mapping[TrainingJob, str]
    failed_metrics: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC, Generic[R]):
    """An experiment on one study.

    Attributes:
        study: what is held fixed.
        metrics: to compute; the study's own where none is named.
        num_queries: how many of the study's queries; the study's own number by default.
        results: folder; ``results/runs/<study>`` by default.
        device, workers, threads: where and how to compute.
        size_limit_mib: of the kept models.
        retry_failed: whether trainings that were set aside as failed are tried again.
        engine: who trains: "local", or a crew of ``bench.retraining.crews``.
        engine_options: of that crew.
    """

    study: Study
    metrics: Sequence[Metric] = ()
    num_queries: int | None = None
    results: Path | None = None
    device: str = "cpu"
    workers: int = 1
    threads: int = field(default_factory=available_threads)
    size_limit_mib: float = 1024.0
    retry_failed: bool = False
    engine: str = "local"
    engine_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_engine(self.engine, self.engine_options)
        if self.study.recipe.stack > 1 and self.study.fine_tuning is not None:
            raise InvalidInput(f"--stack: '{self.study.name}' is a fine-tuning; its models are trained one by one.")
        if self.study.recipe.stack > 1 and self.engine == "local" and self.workers > 1:
            raise InvalidInput("--stack and --workers do not go together: one process trains the whole stack.")
        for name, most in (("workers", MOST_WORKERS), ("threads", MOST_WORKERS)):
            check_count(name, getattr(self, name), most)
        if not math.isfinite(self.size_limit_mib) or self.size_limit_mib < 0:
            raise InvalidInput(f"--keep-models-mib {self.size_limit_mib}: a number from 0 on is expected.")
        if abs(self.study.seed) > LARGEST_SEED:
            raise InvalidInput(f"--seed: a whole number of at most {LARGEST_SEED} is expected.")
        if not self.metrics:
            object.__setattr__(self, "metrics", [metric_registry.create(name) for name in self.study.metrics])
        self.specs  # noqa: B018 - checks the number of queries

    @abstractmethod
    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Which models are compared for which query.

        Args:
            workspace: to score in.
            queries: of the experiment.
            controls: of each query.
            ahead: whether to say only what is known without scoring, and count the rest.
        """

    @abstractmethod
    def report(self, workspace: Workspace, design: Design, measured: Measured) -> R:
        """What people read, from the rows; written into the results folder."""

    def label(self, method: Method) -> str:
        """The method's name in tables."""
        return label_of(method, self.study.name)

    def unscored(
        self, workspace: Workspace, lost: LeftOut, methods: Sequence[Method], queries: Sequence[Query]
    ) -> dict[Method, list[Query]]:
        """The queries that each method has yet to score; one that cannot run, or that fails, goes to ``lost``."""
        found: dict[Method, list[Query]] = {}
        for method in methods:
            with lost.alone(self.label(method), f"method-{method.name}"):
                workspace.require(method, ahead=lost.ahead)
                found[method] = [query for query in queries if not workspace.is_scored(method, query)]
        return found

    def originals(self) -> Sequence[TrainingJob]:
        """Models that the comparisons need whatever is chosen; trained first, side by side where there are workers."""
        return ()

    @property
    def folder(self) -> Path:
        """The results folder."""
        stack = self.study.recipe.stack
        name = self.study.name + (f"-stack{stack}" if stack > 1 else "")  # another version of the study
        return Path(self.results) if self.results else Path("results/runs") / name

    @property
    def query_count(self) -> int:
        """How many queries."""
        return self.study.num_queries if self.num_queries is None else self.num_queries

    @property
    def specs(self) -> list[QuerySpec]:
        """The queries to run on."""
        return self.study.queries(self.query_count)

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of this experiment beyond the usual."""
        return {}

    def control_specs(self, query: Query | QuerySpec) -> list[QuerySpec]:
        """The control queries of ``query`` that the metrics need; none where no metric is relative to controls."""
        needed = any(metric.relative_to_controls for metric in self.metrics)
        return self.study.controls(query) if needed else []

    def open(self, progress: Progress | None = None) -> Workspace:
        """The results folder, claimed for this study."""
        return Workspace(
            self.study,
            self.folder,
            metrics=self.metrics,
            device=self.device,
            workers=self.workers,
            progress=progress,
            size_limit_mib=self.size_limit_mib,
            retry_failed=self.retry_failed,
            crew=self.engine,
            crew_options=self.engine_options,
        )

    def store(self, workspace: Workspace) -> Store:
        """Where the rows go."""
        return workspace.store

    def execute(self, progress: Progress | None = None) -> R:
        """Do what is not done yet, then report. May be interrupted and called again at any time."""
        started = time.perf_counter()
        with compute_threads(self.threads):
            workspace = self.open(progress)
            self._check_trainable()
            usable, left_out = self._measurable(workspace)
            self.vet(workspace)
            self._train_originals(workspace)
            design = self.design(workspace)
            failed = workspace.fulfil(design.requests)
            rows = evaluate(workspace.ledger, design.chosen.comparisons, usable, failed)
            measured = Measured(
                rows=rows,
                metrics=usable,
                skipped_metrics=left_out.skipped,
                failed=failed,
                failed_metrics=left_out.failed,
                seconds=time.perf_counter() - started,
            )
            return self.report(workspace, design, measured)

    def _check_trainable(self) -> None:
        """Raise InvalidInput where this trains models and the study has a given one."""
        if self.originals() and self.study.untrainable:
            raise InvalidInput(self.study.untrainable)

    def vet(self, workspace: Workspace) -> None:
        """Try what can be tried before anything is trained."""

    def design(self, workspace: Workspace, *, ahead: bool = False) -> Design:
        """Which models, which observations, which rows. Trains and scores what it needs, unless ``ahead``."""
        self._check_trainable()
        queries, controls = self.asked(workspace, ahead=ahead)
        chosen = self.comparisons(workspace, queries, controls, ahead=ahead)
        complete = not ahead or load_queries(workspace.store).keys() >= {query.id for query in queries}
        return Design(queries=queries, controls=controls, chosen=chosen, complete=complete)

    def asked(self, workspace: Workspace, *, ahead: bool) -> tuple[list[Query], Controls]:
        """The queries and their controls, synthesized where they are missing, unless ``ahead``."""
        queries = self._queries(workspace, self.specs, ahead=ahead)
        specs = {query.id: self.control_specs(query) for query in queries}
        distinct = list({spec.id: spec for some in specs.values() for spec in some}.values())
        made = {query.id: query for query in self._queries(workspace, distinct, ahead=ahead)}
        return queries, {name: tuple(made[spec.id] for spec in some) for name, some in specs.items()}

    def _queries(self, workspace: Workspace, specs: Sequence[QuerySpec], *, ahead: bool) -> list[Query]:
        """The queries of ``specs``; where ``ahead``, stand-ins without observations for those that are to come."""
        if not ahead:
            return workspace.queries(specs) if specs else []
        kept, model = load_queries(workspace.store), self.study.model
        nothing = torch.zeros(model.latent_channels, model.sample_size, model.sample_size)
        return [
            kept.get(spec.id) or Query(spec.id, spec.prompt, spec.seed, nothing, nothing, self.study.sampler)
            for spec in specs
        ]

    def _measurable(self, workspace: Workspace) -> tuple[list[Metric], LeftOut]:
        """The metrics that can be computed here, and the others, whose observations are kept all the same."""
        usable: list[Metric] = []
        left_out = LeftOut(workspace)
        for metric in self.metrics:
            with left_out.alone(metric.name, f"metric-{metric.name}"):
                metric.prepare()
                _ = metric.digest
                usable.append(metric)
        if not usable:
            reasons = {**left_out.skipped, **left_out.failed}
            raise InvalidInput("no metric can be computed here: " + "; ".join(f"{n}: {w}" for n, w in reasons.items()))
        check_evaluators(self.store(workspace), usable)
        return usable, left_out

    def _train_originals(self, workspace: Workspace) -> None:
        """In a new folder, θ0 and the models that removals are compared with, side by side where there are workers."""
        known = set(load_queries(workspace.store))
        side_by_side = self.workers > 1 or self.engine != "local" or self.study.recipe.stack > 1
        if side_by_side and not known.issuperset(spec.id for spec in self.specs):
            workspace.train([workspace.original_job(), *self.originals()])


def with_floors(methods: Sequence[Method], floors: Sequence[str] = ()) -> list[Method]:
    """``methods``, with the floors that are missing among them.

    Args:
        methods: to compare.
        floors: names; every floor where none is given. The baseline, from which differences are taken, always is one.
    """
    there = {method.name for method in methods}
    wanted = [*(floors or every_floor()), BASELINE]
    return [*methods, *(method_registry.create(name) for name in dict.fromkeys(wanted) if name not in there)]


def check_count(name: str, value: int, most: int = MOST_MODELS) -> None:
    """Raise InvalidInput where ``value`` of an option is below 1, or so large that nothing would end."""
    if value < 1:
        raise InvalidInput(f"{name} = {value}: at least 1 is expected.")
    if value > most:
        raise InvalidInput(f"{name} = {str(value)[:20]}{'…' if value >= 10**20 else ''}: at most {most} is expected.")
