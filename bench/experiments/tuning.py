"""Tuning on held-out queries, never on the reported ones (law 7): a grid of settings through the whole experiment.

Settings are judged by retraining (``TuningRun``), or, where parts of images are known, by the carriers of the query's
rare parts that they find (``TruthTuningRun``), which costs no training and so affords more queries.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.contracts import Method
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.errors import BenchError, InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.experiment import Measured
from bench.experiments.leave_k_out import Run, RunReport
from bench.experiments.workspace import Workspace
from bench.records.rows import BASELINE, labels
from bench.records.store import write_whole
from bench.registry import methods, tuned_file
from bench.report.shown import Report, Table
from bench.report.statistics import mean_and_error
from bench.report.truth import Truth, found_carriers, summary

OBJECTIVE = "loss_change"


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned(Report):
    """What tuning found.

    Attributes:
        name: of the method or variant.
        best: the method with the best settings.
        tuned_on: in words.
        values: what was compared, held-out queries × labels of the settings; the higher the better.
        kept_in: the file that keeps the best settings, None where they are not kept.
    """

    name: str
    best: Method
    tuned_on: str
    values: pd.DataFrame
    kept_in: Path | None = None

    def tables(self) -> list[Table]:
        """How far each setting is behind the best."""
        return [behind_the_best(self.values)]

    def notes(self) -> list[str]:
        """The best settings."""
        best = f"best: {self.best.settings()} on {self.tuned_on}"
        return [best, *([f"kept in {self.kept_in}"] if self.kept_in else [])]

    def save(self, study: str) -> Path:
        """Keep the settings where every later run finds them: ``bench.registry.tuned_file``."""
        path = tuned_file(type(self.best), study)
        assert path is not None
        everything = json.loads(path.read_text()) if path.exists() else {}
        is_variant = ":" in self.name  # keeps every setting: what is left out is as tuned for the method
        defaults = methods.create(self.name).settings()
        best = self.best.settings().items()
        changed = {key: value for key, value in best if is_variant or key not in defaults or value != defaults[key]}
        everything.setdefault(self.name, {})[study] = {"settings": changed, "tuned_on": self.tuned_on}
        write_whole(path, (json.dumps(everything, indent=1, sort_keys=True) + "\n").encode())
        return path


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuning(Tuned, RunReport):
    """What tuning by retraining found, beside the rows of all settings, which lie in the folder ``tuning``."""

    def tables(self) -> list[Table]:
        """Those of the run, and how far each setting is behind the best."""
        return [*RunReport.tables(self), *Tuned.tables(self)]

    def notes(self) -> list[str]:
        """Those of the run, and the best settings."""
        return [*RunReport.notes(self), *Tuned.notes(self)]


@dataclass(frozen=True, eq=False, kw_only=True)
class TruthTuning(Tuned):
    """What tuning by the carriers found.

    Attributes:
        truth: the carriers that each setting found.
        seconds: of scoring one query, by the setting's label.
        left_out: settings that could not be tried, with the reason.
    """

    truth: Truth
    seconds: Mapping[str, float]
    left_out: Mapping[str, str]

    def tables(self) -> list[Table]:
        """The carriers that each setting found, and what it took."""
        took = [(["setting", "scoring s/query"], [[label, f"{value:.1f}"] for label, value in self.seconds.items()])]
        return [*self.truth.tables(), *Tuned.tables(self), *took]

    def problems(self) -> list[str]:
        """The settings that could not be tried."""
        return [f"{label}: {why}" for label, why in self.left_out.items()]


def behind_the_best(values: pd.DataFrame) -> Table:
    """How far each setting is behind the best, by query: a lead below its standard error may be chance.

    Args:
        values: queries × labels of the settings, NaN where a setting has none; the highest mean is the best.

    Returns:
        Mean of each setting, and mean ± 1 standard error of its differences to the best one on the queries of both.
    """
    means = values.mean().sort_values(ascending=False)
    lines = []
    for label, mean in means.items():
        lead, error = mean_and_error((values[means.index[0]] - values[label]).dropna().to_numpy())
        behind = "" if label == means.index[0] else f"{lead:.4f} ± {error:.4f}"
        lines.append([str(label), str(values[label].count()), f"{mean:.4f}", behind])
    return ("setting", "queries", "mean", "behind the best ± 1 SE"), lines


def variants(method: Method, grid: Mapping[str, Sequence[Any]]) -> list[Method]:
    """``method`` with every combination of the grid's settings."""
    combinations = itertools.product(*grid.values())
    own = method.settings()
    return [methods.create(method.name, **(own | dict(zip(grid, values, strict=True)))) for values in combinations]


@dataclass(frozen=True, kw_only=True)
class TuningRun(Run):
    """A run on held-out queries whose methods are settings of one; the highest mean loss change wins.

    Attributes:
        tuned: name of the method or variant.
        save: whether every later run of the study is to use the best settings.
    """

    tuned: str
    save: bool = False
    held_out: bool = True
    floors: Sequence[str] = (BASELINE,)

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> Tuned:  # type: ignore[override]
        """The rows of all settings, and the best of them."""
        report = super().report(workspace, design, measured)
        labelled = report.frame.assign(method=labels(report.frame))
        by_label = {self.label(method): method for method in self.methods}
        done = labelled[labelled["method"].isin(by_label) & (labelled["status"] == "done")]
        own = done[done["metric"] == OBJECTIVE]
        if own.empty:
            raise BenchError("no setting has a value: " + "; ".join({**report.skipped, **report.failures}.values()))
        values = own.pivot_table(index="query", columns="method", values="value")
        best = by_label[str(values.mean().idxmax())]
        return self.kept(Tuning(**vars(report), **self.choice(best, "mean loss change"), values=values))

    def choice(self, best: Method, objective: str) -> dict[str, Any]:
        """Fields of the report that say what was chosen, and on what."""
        budgets = ", ".join(str(k) for k in self.ks)
        where = f"{self.query_count} held-out queries of {self.study.name}, {objective} at K = {budgets}"
        return {"name": self.tuned, "best": best, "tuned_on": f"{where}, {len(self.methods)} trials"}

    def kept(self, found: Tuned) -> Tuned:
        """``found``, its settings kept where they are to be."""
        return replace(found, kept_in=found.save(self.study.name)) if self.save else found


@dataclass(frozen=True, kw_only=True)
class TruthTuningRun(TuningRun):
    """The same without any retraining, where the parts of images are known: the setting that finds most carriers wins.

    The carriers are the training images with the query's rare parts (``bench.report.truth``). The settings see
    nothing of them; only the choice between settings does, on queries that no board reports.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.study.dataset.parts:
            raise InvalidInput(f"--by carriers: the parts of the images of {self.study.name} are not known; use faces.")

    def originals(self) -> list[TrainingJob]:
        """None: nothing is removed."""
        return []

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """No comparison: selections alone."""
        return replace(super().comparisons(workspace, queries, controls, ahead=ahead), comparisons=(), later=())

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> Tuned:  # type: ignore[override]
        """The carriers that each setting found, and the best of them."""
        chosen, queries = design.chosen, design.queries
        by_label = {self.label(method): method for method in self.methods if method in chosen.selections}
        left_out = {**chosen.skipped, **chosen.failures}
        if not by_label:
            raise BenchError("no setting could be tried: " + "; ".join(left_out.values()))
        tops = {self.label(method): found for method, found in chosen.selections.items()}
        found = found_carriers(self.study, queries, tops)
        truth = Truth(summary(found), agreement={})
        values = found[found["label"].isin(by_label)].pivot_table(index="query", columns="label", values="recall")
        seconds = {
            label: sum(workspace.score_seconds(method, query) for query in queries) / len(queries)
            for label, method in by_label.items()
        }
        chose = self.choice(by_label[str(values.mean().idxmax())], "carriers found")
        return self.kept(TruthTuning(**chose, values=values, truth=truth, seconds=seconds, left_out=left_out))
