"""Tuning on held-out queries, never on the reported ones (law 7): a grid of settings through the whole experiment."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.contracts import Method
from bench.errors import BenchError
from bench.experiments.design import Design
from bench.experiments.experiment import Measured
from bench.experiments.leave_k_out import Run, RunReport
from bench.experiments.workspace import Workspace
from bench.records.rows import BASELINE, labels
from bench.records.store import write_whole
from bench.registry import TUNED_FILE, methods
from bench.report.summary import summarize

OBJECTIVE = "loss_change"


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuning(RunReport):
    """What tuning found, beside the rows of all settings, which lie in the folder ``tuning``.

    Attributes:
        name: of the method or variant.
        best: the method with the settings of the highest mean loss change.
        tuned_on: in words.
        kept_in: the file that keeps the best settings, None where they are not kept.
    """

    name: str
    best: Method
    tuned_on: str
    kept_in: Path | None = None

    def notes(self) -> list[str]:
        """Those of the run, and the best settings."""
        best = f"best: {self.best.settings()} on {self.tuned_on}"
        return [*super().notes(), best, *([f"kept in {self.kept_in}"] if self.kept_in else [])]

    def save(self, study: str) -> Path:
        """Keep the settings in tuned.json beside the method's file, where every later run finds them."""
        source = sys.modules[type(self.best).__module__].__file__
        assert source is not None
        path = Path(source).with_name(TUNED_FILE)
        everything = json.loads(path.read_text()) if path.exists() else {}
        is_variant = ":" in self.name  # keeps every setting: what is left out is as tuned for the method
        defaults = methods.create(self.name).settings()
        changed = {key: value for key, value in self.best.settings().items() if is_variant or value != defaults[key]}
        everything.setdefault(self.name, {})[study] = {"settings": changed, "tuned_on": self.tuned_on}
        write_whole(path, (json.dumps(everything, indent=1, sort_keys=True) + "\n").encode())
        return path


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

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> Tuning:
        """The rows of all settings, and the best of them."""
        report = super().report(workspace, design, measured)
        labelled = report.frame.assign(method=labels(report.frame))
        table = summarize(
            labelled, len(self.study.dataset)
        )  # this run's rows alone: the folder may hold older ones by the same names
        by_label = {self.label(method): method for method in self.methods}
        own = table[(table["metric"] == OBJECTIVE) & table["method"].isin(by_label)]
        if own.empty:
            raise BenchError("no setting has a value: " + "; ".join({**report.skipped, **report.failures}.values()))
        best = own.groupby("method")["mean"].mean().idxmax()
        budgets = ", ".join(str(k) for k in self.ks)
        tuned_on = f"{self.query_count} held-out queries of {self.study.name}, mean loss change at K = {budgets}"
        found = Tuning(**vars(report), name=self.tuned, best=by_label[best], tuned_on=tuned_on)
        return replace(found, kept_in=found.save(self.study.name)) if self.save else found
