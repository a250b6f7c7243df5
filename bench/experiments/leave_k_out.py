"""Leave-K-out, the gold standard: remove the top K that a method names, retrain, and compare.

A **study** is fixed; each **method** scores every training image for every **query**; the **top K** are removed; the
model is **retrained** without them; **metrics** compare what it does with the query with what the original did;
**tables and figures** tell who found the images that mattered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from bench.contracts import Method
from bench.diffusion.queries import Query, QuerySpec
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput, ResultsFolderError, Unavailable, reason_of
from bench.experiments.design import Chosen, Controls, Design, Selections
from bench.experiments.evaluation import Comparison, evaluation_seed
from bench.experiments.experiment import Experiment, Measured, at_least_one, with_floors
from bench.experiments.pictures import draw_figures
from bench.experiments.workspace import Workspace
from bench.foundation.machine import describe, peak_memory_mib
from bench.records import folder, rows
from bench.records.names import MethodName
from bench.records.store import Store, write_json, write_whole
from bench.registry import floors as every_floor
from bench.registry import named, tuned
from bench.report import floors, summary, truth
from bench.report.shown import Report, Table

DESIGNS = ("paired", "unpaired", "both")


@dataclass(frozen=True, eq=False)
class RunReport(Report):
    """What a run gives.

    Attributes:
        frame: the rows of this run (columns: ``bench.records.rows.COLUMNS``).
        merged: those of all runs in the folder.
        table: their summary over queries.
        manifest: what produced them.
        figures: paths of the pictures.
        folder: where all of it lies.
        skipped: methods that cannot run here, with the reason.
        skipped_metrics: metrics that cannot be computed here, with the reason.
        failures: methods that failed, with the reason.
        truth: carriers of the query's rare parts among the top K (``bench.report.truth.summary``); empty where the
            parts of images are not known.
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
    truth: pd.DataFrame

    def tables(self) -> list[Table]:
        """The means over queries, and the carriers found where they are known."""
        known = [(truth.TABLE_HEAD, truth.table_cells(self.truth))] if len(self.truth) else []
        return [(summary.TABLE_HEAD, summary.table_cells(self.table)), *known]

    def notes(self) -> list[str]:
        """What was skipped, what each method's settings come from, who does not beat the floors, where all lies."""
        directions = {name: facts["higher_is_better"] for name, facts in self.manifest["metrics"].items()}
        skipped = {**self.skipped, **self.skipped_metrics}
        return [
            *(f"skipped {name}: {why}" for name, why in skipped.items()),
            *(f"{method}: {facts['tuned_on']}" for method, facts in self.manifest["methods"].items()),
            *floors.notes(self.merged, directions),
            f"table, frame, manifest and pictures: {self.folder}",
        ]

    def problems(self) -> list[str]:
        """The methods that failed; a run all of whose methods were skipped."""
        failed = [f"{name} failed: {why}" for name, why in self.failures.items()]
        asked = self.manifest["methods"].keys() - set(every_floor())
        all_skipped = asked and asked <= self.skipped.keys()
        return failed + (["every method was skipped; see the reasons above."] if all_skipped else [])


@dataclass(frozen=True, kw_only=True)
class Removals(Experiment[RunReport]):
    """An experiment that removes K images, whoever names them, and judges by models of other seeds.

    Attributes:
        budgets: the K; ``ks`` says what stands for none.
        seeds: evaluation seeds to average over (``bench.experiments.evaluation``).
        pairing: "paired", "unpaired" (the same retrained models against θ0), or "both".
    """

    budgets: Sequence[int] = ()
    seeds: int = 1
    pairing: str = "paired"

    def __post_init__(self) -> None:
        super().__post_init__()
        for k in self.budgets:
            self.study.check_budget(k)
        at_least_one("seeds", self.seeds)
        if self.pairing not in DESIGNS:
            raise InvalidInput(f"design = '{self.pairing}': one of {', '.join(DESIGNS)} is expected.")

    @property
    def ks(self) -> tuple[int, ...]:
        """The budgets, ascending; the study's own by default."""
        return tuple(sorted(set(self.budgets or self.study.budgets)))

    @property
    def facts(self) -> dict[str, Any]:
        """Budgets, seeds and pairing."""
        return {"budgets": list(self.ks), "seeds": self.seeds, "design": self.pairing}

    def seed_pairs(self) -> list[tuple[int, int]]:
        """(seed of the retrained model, seed of the original) of each row."""
        seeds = [evaluation_seed(self.study, index) for index in range(self.seeds)]
        paired = [(seed, seed) for seed in seeds] if self.pairing != "unpaired" else []
        unpaired = [(seed, self.study.seed) for seed in seeds] if self.pairing != "paired" else []
        return paired + unpaired

    def originals(self) -> list[TrainingJob]:
        """Those that removals are compared with."""
        return [TrainingJob((), original) for _, original in self.seed_pairs()]


@dataclass(frozen=True, kw_only=True)
class Run(Removals):
    """A run of the benchmark.

    Attributes:
        methods: to compare.
        floors: names of those to add where they are missing; every floor by default. ``random`` always is one.
        floor_seeds: models with nothing removed, for the unpaired floor; the first ones are the pairs' own originals.
        held_out: run on the held-out queries, to tune; their rows go to the folder ``tuning``, never to the table.
    """

    methods: Sequence[Method]
    floors: Sequence[str] = ()
    floor_seeds: int = 1
    held_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.floors:
            if name not in every_floor():
                raise InvalidInput(f"--floor {name}: one of {', '.join(every_floor())} is expected.")

    @property
    def specs(self) -> list[QuerySpec]:
        """The queries to run on."""
        return (self.study.held_out_queries if self.held_out else self.study.queries)(self.query_count)

    @property
    def with_floors(self) -> list[Method]:
        """The methods, with the floors."""
        return with_floors(self.methods, self.floors)

    def control_specs(self, query: Query | QuerySpec) -> list[QuerySpec]:
        """The control queries of ``query``; those of a held-out query are held out too."""
        needed = any(metric.relative_to_controls for metric in self.metrics)
        return self.study.controls(query, held_out=self.held_out) if needed else []

    def label(self, method: Method) -> str:
        """The method's name in tables, with the settings that differ from those tuned for this study."""
        return named(method, self.study.name).label

    def store(self, workspace: Workspace) -> Store:
        """Where the rows go: those of held-out queries stay apart."""
        return Store(workspace.store.root / folder.TUNING) if self.held_out else workspace.store

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Every removal, and nothing removed under other seeds."""
        selections, unscored, skipped, failures = self._select(workspace, queries, ahead=ahead)
        pairs = self.seed_pairs()
        removals = [
            Comparison(
                named=named(method, self.study.name),
                method_digest=method.digest,
                query=query,
                k=k,
                retrained=TrainingJob(tuple(sorted(chosen[query.id, k])), retrained),
                original=TrainingJob((), original),
                score_seconds=workspace.score_seconds(method, query),
                controls=controls.get(query.id, ()),
            )
            for query in queries
            for method, chosen in selections.items()
            for k in self.ks
            if (query.id, k) in chosen
            for retrained, original in pairs
        ]
        return Chosen(
            comparisons=self._floor(workspace, queries, controls) + removals,
            selections=selections,
            unscored=unscored,
            unknown=sum(map(len, unscored.values())) * len(self.ks) * len(pairs),
            later=self.originals() if len(skipped) + len(failures) < len(self.with_floors) else (),
            skipped=skipped,
            failures=failures,
        )

    def _floor(self, workspace: Workspace, queries: Sequence[Query], controls: Controls) -> list[Comparison]:
        """Nothing removed, other seeds."""
        return [
            Comparison(
                named=MethodName(rows.NOTHING_REMOVED),
                method_digest="",
                query=query,
                k=0,
                retrained=TrainingJob((), evaluation_seed(self.study, index)),
                original=workspace.original_job(),
                score_seconds=0.0,
                controls=controls.get(query.id, ()),
            )
            for index in range(self.floor_seeds)
            for query in queries
        ]

    def _select(
        self, workspace: Workspace, queries: Sequence[Query], *, ahead: bool
    ) -> tuple[Selections, dict[Method, list[Query]], dict[str, str], dict[str, str]]:
        """The top K of each method, what is not scored yet, why others were skipped or failed; none stops the rest."""
        selections: dict[Method, Mapping[tuple[str, int], tuple[int, ...]]] = {}
        unscored: dict[Method, list[Query]] = {}
        skipped: dict[str, str] = {}
        failures: dict[str, str] = {}
        for method in self.with_floors:
            try:
                if ahead and (why := method.unavailable()):
                    raise Unavailable(why)
                if not ahead:
                    method.prepare()
                known = [q for q in queries if workspace.is_selected(method, q, max(self.ks))] if ahead else queries
                unscored[method] = [query for query in queries if query not in known]
                if known:
                    selections[method] = workspace.selections(method, known, self.ks)
            except Unavailable as error:
                skipped[self.label(method)] = str(error)
                workspace.progress.say(f"skipped {self.label(method)}: {error}")
            except (Exception, SystemExit) as error:
                if isinstance(error, ResultsFolderError):
                    raise
                failures[self.label(method)] = reason = reason_of(error)
                workspace.progress.say(f"failed {self.label(method)}: {reason}")
        return selections, unscored, skipped, failures

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> RunReport:
        """Tables and figures of these rows beside those of earlier runs in the folder."""
        chosen = design.chosen
        selections = {self.label(method): tops for method, tops in chosen.selections.items()}
        return written(self, workspace, design, measured, methods=self.with_floors, selections=selections, ks=self.ks)


def written(
    experiment: Experiment[Any],
    workspace: Workspace,
    design: Design,
    measured: Measured,
    *,
    methods: Sequence[Method] = (),
    selections: Mapping[str, Mapping[tuple[str, int], tuple[int, ...]]] | None = None,
    ks: Sequence[int] = (),
) -> RunReport:
    """Merge the rows into the folder and write table, manifest and figures: how every run ends.

    Args:
        experiment: whose.
        methods: for the manifest.
        selections: the top K by the method's label, for pictures.
        ks: the K.
    """
    frame = rows.frame_of(measured.rows)
    store = experiment.store(workspace)
    merged = rows.merge(store, frame)
    table = summary.summarize(merged.assign(method=rows.labels(merged)), len(experiment.study.dataset))
    chosen = design.chosen
    skipped, failures = dict(chosen.skipped), dict(chosen.failures)
    manifest = _manifest(experiment, workspace, measured, methods) | {
        "run": _run_facts(experiment, workspace, design, measured)
    }
    with store.lock("report"):
        kept = store.record(folder.MANIFEST) or {"runs": []}
        known = {part: kept.get(part, {}) | manifest[part] for part in ("methods", "metrics")}
        write_json(store.path(folder.MANIFEST), manifest | known | {"runs": [*kept["runs"], manifest["run"]]})
        write_whole(store.path(folder.TABLE), summary.markdown(table).encode())
        figures = draw_figures(workspace, store, design.queries, selections or {}, ks, merged)
    skipped_metrics = dict(measured.skipped_metrics)
    known = truth.summary(truth.found_carriers(experiment.study, design.queries, selections or {}))
    return RunReport(frame, merged, table, manifest, figures, store.root, skipped, skipped_metrics, failures, known)


def _manifest(
    experiment: Experiment[Any], workspace: Workspace, measured: Measured, methods: Sequence[Method]
) -> dict[str, Any]:
    """What produced these rows (law 6)."""
    study = experiment.study
    names = {method: named(method, study.name) for method in methods}
    return {
        "study": study.name,
        "study_digest": study.digest,
        "parts": study.parts,
        "version": version("attribution-bench"),
        "methods": {
            name.label: {
                "settings": method.settings(),
                "sources": method.sources(),
                "digest": method.digest,
                "tuned_on": tuned(type(method), study.name, name.variant)["tuned_on"],
            }
            for method, name in names.items()
        },
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
            for metric in measured.metrics
        },
    }


def _run_facts(experiment: Experiment[Any], workspace: Workspace, design: Design, measured: Measured) -> dict[str, Any]:
    """What the manifest says of this run."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": describe(workspace.device),
        "device": experiment.device,
        "workers": experiment.workers,
        "threads": experiment.threads,
        "queries": experiment.query_count,
        **experiment.facts,
        "skipped": dict(design.chosen.skipped) | dict(measured.skipped_metrics),
        "failures": dict(design.chosen.failures),
        "wall_seconds": round(measured.seconds, 2),
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
