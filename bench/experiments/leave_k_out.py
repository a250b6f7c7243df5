"""Leave-K-out, the gold standard: remove the top K that a method names, retrain, and compare.

A **study** is fixed; each **method** scores every training image for every **query**; the **top K** are removed; the
model is **retrained** without them; **metrics** compare what it does with the query with what the original did;
**tables and figures** tell who found the images that mattered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from bench.contracts import Method, Metric
from bench.diffusion.queries import Query, QuerySpec
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design, Selections
from bench.experiments.evaluation import Comparison, evaluation_seed
from bench.experiments.experiment import Experiment, Measured, R, check_count, with_floors
from bench.experiments.left_out import LeftOut
from bench.experiments.pictures import draw_figures
from bench.experiments.projecting import keep_choices
from bench.experiments.workspace import Workspace
from bench.foundation.machine import command_line, describe, peak_memory_mib
from bench.records import folder, rows
from bench.records.names import MethodName
from bench.records.store import Store, write_whole
from bench.registry import floors as every_floor
from bench.registry import named, tuned_on
from bench.report import floors, query_overlap, summary
from bench.report.projections import agreements, beside
from bench.report.shown import Report, Table, as_markdown
from bench.report.truth import Truth

DESIGNS = ("paired", "unpaired", "both")


@dataclass(frozen=True, eq=False)
class RunReport(Report):
    """What a run gives.

    Attributes:
        frame: the rows of this run (columns: ``bench.records.rows.COLUMNS``).
        merged: those of all runs in the folder.
        table: their summary over queries.
        groups: means in each group of queries (``bench.report.summary.by_group``); empty where there are no groups.
        truth: what the parts of images tell, where they are known.
        manifest: what produced them.
        figures: paths of the pictures.
        folder: where all of it lies.
        skipped: methods that cannot run here, with the reason.
        skipped_metrics: metrics that cannot be computed here, with the reason.
        failures: methods that failed, with the reason.
        failed_trainings: reasons of the trainings that failed, by the model's key.
        damage: what was set aside in the folder, in words.
        overlap: what the top images of different queries have in common, in words.
        projected: by digest of a method, what is known of its projection, in words.
    """

    frame: pd.DataFrame
    merged: pd.DataFrame
    table: pd.DataFrame
    groups: pd.DataFrame
    truth: Truth
    manifest: dict[str, Any]
    figures: list[Path]
    folder: Path
    skipped: dict[str, str]
    skipped_metrics: dict[str, str]
    failures: dict[str, str]
    failed_trainings: dict[str, str]
    damage: list[str]
    overlap: list[str]
    projected: Mapping[str, str]

    def tables(self) -> list[Table]:
        """The means over queries, those in each group of queries, and the carriers found where they are known."""
        groups = [(list(self.groups), self.groups.astype(str).to_numpy().tolist())] if len(self.groups) else []
        return [(summary.TABLE_HEAD, summary.table_cells(self.table)), *groups, *self.truth.tables()]

    def notes(self) -> list[str]:
        """What was skipped, what each method's settings come from, who does not beat the floors, where all lies."""
        directions = {name: facts["higher_is_better"] for name, facts in self.manifest["metrics"].items()}
        skipped = {**self.skipped, **self.skipped_metrics}
        return [
            *self.truth.notes(),
            *self.overlap,
            *(f"skipped {name}: {why}" for name, why in skipped.items()),
            *self.damage,
            *(
                f"{method}: {beside(facts['tuned_on'], self.projected.get(facts['digest']))}"
                for method, facts in self.manifest["methods"].items()
            ),
            *floors.notes(self.merged, directions),
            f"table, frame, manifest and pictures: {self.folder}",
        ]

    def problems(self) -> list[str]:
        """The methods, metrics, trainings and values that failed; a run all of whose methods were skipped."""
        failed = [f"{name} failed: {why}" for name, why in self.failures.items()]
        if self.failed_trainings:
            reasons = sorted(set(self.failed_trainings.values()))
            failed.append(
                f"{len(self.failed_trainings)} trainings failed ({'; '.join(reasons[:3])}"
                f"{'; …' if len(reasons) > 3 else ''}); --retry-failed tries those again that were set aside"
            )
        lost = self.frame[self.frame["status"] == "failed"]
        if len(lost):
            reasons = sorted(set(lost["reason"]) - set(self.failed_trainings.values()))
            why = f": {'; '.join(reasons[:3])}" if reasons else ""
            failed.append(f"{len(lost)} of {len(self.frame)} values are missing, the others are written{why}")
        asked = self.manifest["methods"].keys() - set(every_floor())
        all_skipped = asked and asked <= self.skipped.keys()
        return failed + (["every method was skipped; see the reasons above."] if all_skipped else [])


@dataclass(frozen=True, kw_only=True)
class Removals(Experiment[R]):
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
        check_count("seeds", self.seeds)
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
class MethodRemovals(Removals[R]):
    """Removals that methods choose, beside floors.

    Attributes:
        methods: to compare.
        floors: names of those to add where they are missing; every floor by default. ``random`` always is one.
    """

    methods: Sequence[Method]
    floors: Sequence[str] = ()

    @property
    def with_floors(self) -> list[Method]:
        """The methods, with the floors."""
        return with_floors(self.methods, self.floors)

    def vet(self, workspace: Workspace) -> None:
        """Try every method, so that one that is broken costs no training."""
        workspace.vet(self.with_floors)


@dataclass(frozen=True, kw_only=True)
class Run(MethodRemovals[RunReport]):
    """A run of the benchmark.

    Attributes:
        floor_seeds: models with nothing removed, for the unpaired floor; the first ones are the pairs' own originals.
        held_out: run on the held-out queries, to tune; their rows go to the folder ``tuning``, never to the table.
    """

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

    def control_specs(self, query: Query | QuerySpec) -> list[QuerySpec]:
        """The control queries of ``query``; those of a held-out query are held out too."""
        needed = any(metric.relative_to_controls for metric in self.metrics)
        return self.study.controls(query, held_out=self.held_out) if needed else []

    def store(self, workspace: Workspace) -> Store:
        """Where the rows go: those of held-out queries stay apart."""
        if not self.held_out:
            return workspace.store
        return Store(workspace.store.root / folder.TUNING, note=workspace.store.note, study=self.study.digest)

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Every removal, and nothing removed under other seeds."""
        selections, unscored, left_out = self._select(workspace, queries, ahead=ahead)
        pairs = self.seed_pairs()
        facts = {method: (named(method, self.study.name), method.digest) for method in selections}
        removals = [
            Comparison(
                named=facts[method][0],
                method_digest=facts[method][1],
                query=query,
                k=k,
                retrained=TrainingJob(removed, retrained),
                original=TrainingJob((), original),
                score_seconds=workspace.score_seconds(method, query),
                controls=controls.get(query.id, ()),
            )
            for query in queries
            for method, chosen in selections.items()
            for k in self.ks
            if (query.id, k) in chosen
            for removed in [tuple(sorted(chosen[query.id, k]))]
            for retrained, original in pairs
        ]
        return Chosen(
            comparisons=self._floor(workspace, queries, controls) + removals,
            selections=selections,
            unscored=unscored,
            unknown=sum(map(len, unscored.values())) * len(self.ks) * len(pairs),
            later=self.originals() if len(left_out.skipped) + len(left_out.failed) < len(self.with_floors) else (),
            skipped=left_out.skipped,
            failures=left_out.failed,
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
    ) -> tuple[Selections, dict[Method, list[Query]], LeftOut]:
        """The top K of each method, what is not scored yet, and the methods that have none."""
        selections: dict[Method, Mapping[tuple[str, int], tuple[int, ...]]] = {}
        unscored: dict[Method, list[Query]] = {}
        left_out = LeftOut(workspace, ahead)
        for method in self.with_floors:
            with left_out.alone(self.label(method), f"method-{method.name}"):
                workspace.require(method, ahead=ahead)
                known = [q for q in queries if workspace.is_selected(method, q, max(self.ks))] if ahead else queries
                if known:
                    selections[method] = workspace.selections(method, known, self.ks)
                unscored[method] = [query for query in queries if query not in known]
        return selections, unscored, left_out

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
    study, frame = experiment.study, rows.frame_of(measured.rows)
    store = experiment.store(workspace)
    groups = {query.id: study.group(query) for query in design.queries if study.group(query)}
    tops = selections or {}
    manifest = manifest_of(experiment, workspace, design, measured, methods)
    keep_choices(workspace, methods)
    with store.lock("results"):
        merged = rows.merge(store, frame)
        labelled = merged.assign(method=rows.labels(merged))
        keep_manifest(store, folder.MANIFEST, manifest)
        figures = draw_figures(workspace, store, design.queries, tops, ks, merged)
        report = RunReport(
            frame=frame,
            merged=merged,
            table=summary.summarize(labelled, len(study.dataset)),
            groups=summary.by_group(labelled, groups),
            truth=Truth.of(study, design.queries, tops, _values(workspace.metrics[0], labelled, ks)),
            manifest=manifest,
            figures=figures,
            folder=store.root,
            skipped=dict(design.chosen.skipped),
            skipped_metrics=dict(measured.skipped_metrics),
            failures={**design.chosen.failures, **measured.failed_metrics},
            failed_trainings=_failed_trainings(workspace, measured),
            damage=[*workspace.store.damage],
            overlap=query_overlap.notes(tops, design.queries, ks, len(study.dataset)),
            projected=agreements(workspace.store),
        )
        table = store.path(folder.TABLE)
        write_whole(table, "\n".join(map(as_markdown, report.tables())).encode())
        store.list_digests([table, *figures])
    return report


def manifest_of(
    experiment: Experiment[Any], workspace: Workspace, design: Design, measured: Measured, methods: Sequence[Method]
) -> dict[str, Any]:
    """What produced these rows (law 6), and under "run" what is to be said of this run."""
    run = _run_facts(experiment, workspace, design, measured)
    return _manifest(experiment, workspace, measured, methods) | {"run": run}


def keep_manifest(store: Store, name: str, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest`` as ``name``, with the methods, metrics and runs of the one that is there."""
    kept = store.record(name) or {"runs": []}
    known = {part: kept.get(part, {}) | manifest[part] for part in ("methods", "metrics")}
    runs = {"runs": [*kept.get("runs", []), manifest["run"]]}
    store.write_record((name,), {**manifest, **known, **runs})


def _failed_trainings(workspace: Workspace, measured: Measured) -> dict[str, str]:
    """Reasons by the model's key."""
    return {workspace.ledger.key(job): why for job, why in measured.failed.items()}


def _values(metric: Metric, frame: pd.DataFrame, ks: Sequence[int]) -> dict[int, pd.DataFrame]:
    """By K, the values of ``metric``, queries × methods; higher means that the removed images mattered more."""
    done = frame[(frame["metric"] == metric.name) & (frame["status"] == "done")]
    sign = 1 if metric.higher_is_better else -1
    return {k: sign * done[done["k"] == k].pivot_table("value", "query", "method") for k in ks}


def _manifest(
    experiment: Experiment[Any], workspace: Workspace, measured: Measured, methods: Sequence[Method]
) -> dict[str, Any]:
    """Study, methods and metrics."""
    study = experiment.study
    names = {method: named(method, study.name) for method in methods if method not in workspace.rejected}
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
                "tuned_on": tuned_on(type(method), study.name, name),
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
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": describe(workspace.device),
        "device": experiment.device,
        "workers": experiment.workers,
        "threads": experiment.threads,
        "queries": experiment.query_count,
        **experiment.facts,
        "skipped": dict(design.chosen.skipped) | dict(measured.skipped_metrics),
        "failures": {**design.chosen.failures, **measured.failed_metrics},
        "failed_trainings": _failed_trainings(workspace, measured),
        "wall_seconds": round(measured.seconds, 2),
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
