"""The experiment, as the sentence of the project reads.

A **study** is fixed; each **method** scores every training image for every **query**; the **top K** are removed; the
model is **retrained** without them; **metrics** compare what it does with the query with what the original did;
**tables and figures** tell who found the images that mattered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from bench.contracts import Method, Metric
from bench.diffusion.queries import Query, QuerySpec, load_queries
from bench.diffusion.training import TrainingJob
from bench.errors import BenchError, InvalidInput, TrainingFailed, Unavailable
from bench.experiments.evaluation import Comparison, evaluate, evaluation_seed
from bench.experiments.pictures import draw_figures
from bench.experiments.workspace import Workspace
from bench.foundation.machine import available_threads, compute_threads, describe, peak_memory_mib
from bench.foundation.progress import Progress
from bench.records import folder
from bench.records import rows as results
from bench.records.store import Store, write_json, write_whole
from bench.registry import label_of, tuned, variant_of
from bench.registry import methods as method_registry
from bench.registry import metrics as metric_registry
from bench.report import summary
from bench.retraining.ledger import Request
from bench.studies import Study

DEFAULT_METRICS = ("loss_change", "regeneration_mse")
DESIGNS = ("paired", "unpaired", "both")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the benchmark.

    Attributes:
        study: what is held fixed.
        methods: to compare; ``random``, the floor, is added where it is missing.
        budgets: the K; the study's own by default.
        num_queries: how many of the study's queries; the study's own number by default.
        seeds: evaluation seeds to average over (``bench.experiments.evaluation``).
        design: "paired", "unpaired" (the same retrained models against θ0), or "both".
        floor_seeds: models with nothing removed, for the unpaired floor; the first ones are the pairs' own originals.
        metrics: to compute.
        held_out: run on the held-out queries, to tune; their figures go to the folder ``tuning``, never to the table.
        results: folder; ``results/runs/<study>`` by default.
        device, workers, threads: where and how to compute.
        size_limit_mib: of the kept models.
    """

    study: Study
    methods: Sequence[Method]
    budgets: Sequence[int] = ()
    num_queries: int | None = None
    seeds: int = 1
    design: str = "paired"
    floor_seeds: int = 1
    metrics: Sequence[Metric] = field(default_factory=lambda: [metric_registry.create(n) for n in DEFAULT_METRICS])
    held_out: bool = False
    results: Path | None = None
    device: str = "cpu"
    workers: int = 1
    threads: int = field(default_factory=available_threads)
    size_limit_mib: float = 1024.0

    def __post_init__(self) -> None:
        for k in self.budgets:
            self.study.check_budget(k)
        for name in ("seeds", "workers", "threads"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} = {getattr(self, name)}: at least 1 is expected.")
        if self.design not in DESIGNS:
            raise InvalidInput(f"design = '{self.design}': one of {', '.join(DESIGNS)} is expected.")
        self.specs  # noqa: B018 - checks the number of queries

    @property
    def folder(self) -> Path:
        """The results folder."""
        return self.results or Path("results/runs") / self.study.name

    @property
    def ks(self) -> tuple[int, ...]:
        """The budgets, ascending."""
        return tuple(sorted(set(self.budgets or self.study.budgets)))

    @property
    def query_count(self) -> int:
        """How many queries."""
        return self.study.num_queries if self.num_queries is None else self.num_queries

    @property
    def specs(self) -> list[QuerySpec]:
        """The queries to run on."""
        return (self.study.held_out_queries if self.held_out else self.study.queries)(self.query_count)

    @property
    def with_floor(self) -> list[Method]:
        """The methods, with the random floor."""
        named = any(method.name == results.BASELINE for method in self.methods)
        return [*self.methods, *([] if named else [method_registry.create(results.BASELINE)])]

    @property
    def run_facts(self) -> dict[str, Any]:
        """What the manifest says of this run beyond the usual."""
        return {}

    def open(self, progress: Progress | None = None) -> Workspace:
        """The results folder, claimed for this study."""
        return Workspace(
            self.study,
            self.folder,
            metrics=self.metrics,
            device=self.device,
            progress=progress,
            size_limit_mib=self.size_limit_mib,
        )

    def execute(self, progress: Progress | None = None) -> Report:
        """Do what is not done yet; returns tables and figures. May be interrupted and called again at any time."""
        started = time.perf_counter()
        with compute_threads(self.threads):
            workspace = self.open(progress)
            metrics, skipped_metrics = self._measurable(workspace)
            self._train_originals(workspace)
            queries = workspace.queries(self.specs)
            controls = self.controls(workspace, queries)
            selections, skipped, failures = self._select(workspace, queries)
            comparisons = self.compare(workspace, queries, selections, controls)
            failed_jobs = self._retrain(workspace, requests_of(comparisons))
            rows = evaluate(workspace.ledger, comparisons, metrics, failed_jobs)
            skips = skipped, skipped_metrics, failures
            return self._report(workspace, queries, selections, rows, *skips, time.perf_counter() - started)

    def label(self, method: Method) -> str:
        """The method's name in tables, with the settings that differ from those tuned for this study."""
        return label_of(method, self.study.name)

    def controls(self, workspace: Workspace, queries: Sequence[Query]) -> Controls:
        """The control queries of ``queries``, synthesized where they are missing."""
        specs = {query.id: self.control_specs(query) for query in queries}
        distinct = list({spec.id: spec for some in specs.values() for spec in some}.values())
        made = {query.id: query for query in workspace.queries(distinct)} if distinct else {}
        return {name: tuple(made[spec.id] for spec in some) for name, some in specs.items()}

    def control_specs(self, query: Query | QuerySpec) -> list[QuerySpec]:
        """The control queries of ``query`` that its metrics need; none where no metric is relative to controls."""
        if not any(metric.relative_to_controls for metric in self.metrics):
            return []
        return self.study.controls(query, held_out=self.held_out)

    def _measurable(self, workspace: Workspace) -> tuple[list[Metric], dict[str, str]]:
        """The metrics that can be computed here, and why others cannot; their observations are kept all the same."""
        usable, skipped = [], {}
        for metric in self.metrics:
            try:
                metric.prepare()
                usable.append(metric)
            except Unavailable as error:
                skipped[metric.name] = str(error)
                workspace.progress.say(f"skipped {metric.name}: {error}")
        if not usable:
            raise InvalidInput("no metric can be computed here: " + "; ".join(f"{n}: {w}" for n, w in skipped.items()))
        summary.check_evaluators(self._store(workspace), usable)
        return usable, skipped

    def _store(self, workspace: Workspace) -> Store:
        """Where the figures go: those of held-out queries stay apart."""
        return Store(workspace.store.root / folder.TUNING) if self.held_out else workspace.store

    def _select(
        self, workspace: Workspace, queries: Sequence[Query]
    ) -> tuple[Selections, dict[str, str], dict[str, str]]:
        """The top K of each method, why others were skipped, and why others failed; none stops the rest."""
        selections: Selections = {}
        skipped: dict[str, str] = {}
        failures: dict[str, str] = {}
        for method in self.with_floor:
            try:
                method.prepare()
                selections[method] = workspace.selections(method, queries, self.ks)
            except Unavailable as error:
                skipped[self.label(method)] = str(error)
                workspace.progress.say(f"skipped {self.label(method)}: {error}")
            except BenchError as error:
                failures[self.label(method)] = str(error)
                workspace.progress.say(f"failed: {error}")
        return selections, skipped, failures

    def compare(
        self, workspace: Workspace, queries: Sequence[Query], selections: Selections, controls: Controls
    ) -> list[Comparison]:
        """Which models are compared for which query: every removal, and nothing removed under other seeds."""
        comparisons = [
            Comparison(
                results.NOTHING_REMOVED,
                "",
                query,
                0,
                TrainingJob((), evaluation_seed(self.study, index)),
                workspace.original_job(),
                0.0,
                controls.get(query.id, ()),
            )
            for index in range(self.floor_seeds)
            for query in queries
        ]
        for query in queries:
            for method, chosen in selections.items():
                seconds = workspace.score_seconds(method, query)
                for k in [k for k in self.ks if (query.id, k) in chosen]:
                    removed = tuple(sorted(chosen[query.id, k]))
                    for retrained, original in self.seed_pairs():
                        jobs = TrainingJob(removed, retrained), TrainingJob((), original)
                        others = controls.get(query.id, ())
                        comparisons.append(
                            Comparison(self.label(method), method.digest, query, k, *jobs, seconds, others)
                        )
        return comparisons

    def seed_pairs(self) -> list[tuple[int, int]]:
        """(seed of the retrained model, seed of the original) of each figure."""
        seeds = [evaluation_seed(self.study, index) for index in range(self.seeds)]
        paired = [(seed, seed) for seed in seeds] if self.design != "unpaired" else []
        unpaired = [(seed, self.study.seed) for seed in seeds] if self.design != "paired" else []
        return paired + unpaired

    def _train_originals(self, workspace: Workspace) -> None:
        """In a new folder, θ0 and the models that removals are compared with, side by side where there are workers."""
        if self.workers == 1 or set(load_queries(workspace.store)).issuperset(spec.id for spec in self.specs):
            return
        first = workspace.original_job()
        others = [TrainingJob((), original) for _, original in self.seed_pairs()]
        requests = [Request(job) for job in dict.fromkeys([first, *others])]
        failed = self._retrain(workspace, requests) if any(map(workspace.ledger.is_due, requests)) else {}
        if first in failed:
            raise TrainingFailed(failed[first])

    def _retrain(self, workspace: Workspace, requests: Sequence[Request]) -> dict[TrainingJob, str]:
        """Train and observe what is missing; returns the reasons of those that failed."""
        missing = [request for request in requests if workspace.ledger.is_due(request)]
        progress, steps = workspace.progress, self.study.recipe.num_steps
        done = {i: 0 for i, request in enumerate(missing) if not workspace.ledger.is_trained(request.job)}
        here = len(missing) - len(done)
        again = sum(
            bool(workspace.ledger.observed(request.job)[1]) and not workspace.ledger.is_trained(request.job)
            for request in missing
        )
        progress.say(
            f"{len(requests)} models: {len(requests) - len(missing)} cached, {here} to observe, "
            f"{len(done)} to train"
            + (f" ({again} of them again: their weights were deleted before all was observed)" if again else "")
        )
        observed = 0
        failures: dict[TrainingJob, str] = {}

        def on_step(index: int, step: int) -> None:
            if index in done:
                done[index] = step
                progress.advance("retrain", sum(done.values()), steps * len(done))

        for outcome in workspace.executor(min(self.workers, len(missing))).fulfil(missing, on_step):
            on_step(outcome.index, steps)
            if outcome.index not in done:
                observed += 1
                progress.advance("observe", observed, here)
            if outcome.failure:
                failures[missing[outcome.index].job] = outcome.failure
                progress.say(f"failed: {outcome.failure}")
        return failures

    def _report(
        self,
        workspace: Workspace,
        queries: Sequence[Query],
        selections: Selections,
        rows: Sequence[results.Row],
        skipped: dict[str, str],
        skipped_metrics: dict[str, str],
        failures: dict[str, str],
        seconds: float,
    ) -> Report:
        frame = results.frame_of(rows)
        store = self._store(workspace)
        merged = results.merge(store, frame)
        told_apart = merged.assign(method=summary.labels(merged))
        table = summary.summarize(told_apart)
        manifest = self._manifest(workspace, skipped | skipped_metrics, failures, seconds)
        with store.lock("report"):
            kept = store.record(folder.MANIFEST) or {"runs": []}
            known = {part: kept.get(part, {}) | manifest[part] for part in ("methods", "metrics")}
            write_json(store.path(folder.MANIFEST), manifest | known | {"runs": [*kept["runs"], manifest["run"]]})
            write_whole(store.path(folder.TABLE), summary.markdown(table).encode())
            named = {self.label(method): chosen for method, chosen in selections.items()}
            figures = draw_figures(workspace, store, queries, named, self.ks, told_apart)
        return Report(frame, merged, table, manifest, figures, store.root, skipped, skipped_metrics, failures)

    def _manifest(
        self, workspace: Workspace, skipped: dict[str, str], failures: dict[str, str], seconds: float
    ) -> dict[str, Any]:
        """What produced these figures (law 6)."""
        settings = {
            self.label(method): {
                "settings": method.settings(),
                "sources": method.sources(),
                "digest": method.digest,
                "tuned_on": tuned(type(method), self.study.name, variant_of(self.label(method)))["tuned_on"],
            }
            for method in self.with_floor
        }
        return {
            "study": self.study.name,
            "study_digest": self.study.digest,
            "parts": self.study.parts,
            "version": version("attribution-bench"),
            "methods": settings,
            "metrics": {
                metric.name: {
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "summary": metric.summary,
                    "observation": metric.observation.name,
                    "version": metric.version,
                    "evaluator": metric.digest,
                    "sources": metric.sources(),
                }
                for metric in self.metrics
                if metric.name not in skipped
            },
            "run": {
                "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                "machine": describe(workspace.device),
                "device": self.device,
                "workers": self.workers,
                "threads": self.threads,
                "budgets": list(self.ks),
                "queries": self.query_count,
                "seeds": self.seeds,
                "design": self.design,
                **self.run_facts,
                "skipped": skipped,
                "failures": failures,
                "wall_seconds": round(seconds, 2),
                "peak_memory_mib": round(peak_memory_mib(), 1),
            },
        }


Selections = dict[Method, dict[tuple[str, int], tuple[int, ...]]]
Controls = Mapping[str, tuple[Query, ...]]
"""The control queries of each query, by its id."""


@dataclass(frozen=True, eq=False)
class Report:
    """What a run gives.

    Attributes:
        frame: the figures of this run, one row each (columns: ``bench.records.rows.COLUMNS``).
        merged: those of all runs in the folder.
        table: their summary over queries.
        manifest: what produced them.
        figures: paths of the pictures.
        folder: where all of it lies.
        skipped: methods that cannot run here, with the reason.
        skipped_metrics: metrics that cannot be computed here, with the reason.
        failures: methods that failed, with the reason.
    """

    frame: pd.DataFrame
    merged: pd.DataFrame
    table: pd.DataFrame
    manifest: dict[str, Any]
    figures: list[Path]
    folder: Path
    skipped: dict[str, str]
    skipped_metrics: dict[str, str]
    failures: dict[str, str]


def requests_of(comparisons: Sequence[Comparison]) -> list[Request]:
    """Each model once, with all the queries that it is compared on; originals first, as everything needs them."""
    wanted: dict[TrainingJob, tuple[dict[str, Query], dict[str, Query]]] = {}
    jobs = [(each.original, each) for each in comparisons] + [(each.retrained, each) for each in comparisons]
    for job, comparison in jobs:
        queries, controls = wanted.setdefault(job, ({}, {}))
        queries[comparison.query.id] = comparison.query
        controls.update({query.id: query for query in comparison.controls})
    return [Request(job, tuple(queries.values()), tuple(others.values())) for job, (queries, others) in wanted.items()]
