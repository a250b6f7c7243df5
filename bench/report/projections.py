"""Agreement of projected gradients with the gradients themselves, as a table and beside a method's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench.records import tables
from bench.records.names import MethodName
from bench.records.store import Store
from bench.report.shown import Report, Table, as_markdown
from bench.report.statistics import interval

ENOUGH = 0.9
"""A projection whose ranks agree less is largely its own random numbers."""
HEAD = ("method", "dimension", "Spearman's ρ with no projection [95 % interval]", "images", "queries")


@dataclass(frozen=True, eq=False)
class ProjectionReport(Report):
    """What was found.

    Attributes:
        frame: one line for each method, dimension and query, of all runs in the folder.
        skipped, failures: methods that were left out, with the reason.
    """

    frame: pd.DataFrame
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> pd.DataFrame:
        """The lines with the method's name, the same for all dimensions."""
        parts = zip(self.frame["method"], self.frame["variant"], self.frame["settings"], strict=True)
        return self.frame.assign(label=[MethodName(*part).label for part in parts])

    def tables(self) -> list[Table]:
        """The means over queries."""
        if not len(self.frame):
            return []
        cells = []
        for (label, dimension, images), own in self.labelled.groupby(["label", "dimension", "images"]):
            found = interval(own["spearman"].to_numpy())
            bounds = "" if np.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
            mark = ", as on the board" if own["own"].any() else ""
            cells.append([str(label), f"{dimension}{mark}", f"{found.mean:.2f}{bounds}", str(images), str(len(own))])
        return [(HEAD, cells)]

    def notes(self) -> list[str]:
        """What was skipped, and the least dimension that is enough for each method."""
        told = [f"skipped {name}: {why}" for name, why in self.skipped.items()]
        if not len(self.frame):
            return told
        means = self.labelled.groupby(["label", "dimension"])["spearman"].mean()
        for label, own in means.groupby(level="label"):
            enough = [int(dimension) for (_, dimension), mean in own.items() if mean >= ENOUGH]
            told.append(
                f"{label}: "
                + (f"{min(enough)} dimensions agree to {ENOUGH} or more" if enough else f"none agrees to {ENOUGH}")
            )
        return told

    def problems(self) -> list[str]:
        """Methods that failed."""
        return [f"{name} failed: {why}" for name, why in self.failures.items()]

    def markdown(self) -> str:
        """The table, with what it is."""
        head = "Scores by projected gradients against scores by the gradients themselves (`bench projection`)."
        return "\n".join([f"{head}\n", *map(as_markdown, self.tables()), *(f"- {note}" for note in self.notes()), ""])


def agreements(store: Store) -> dict[str, str]:
    """By digest of a method, in words how well its projection's ranks agree with no projection's; those measured."""
    frame = tables.PROJECTION.read(store)
    if frame is None or frame.empty:
        return {}
    most = frame[frame["images"] == frame.groupby("method_digest")["images"].transform("max")]
    means = most.groupby(["method_digest", "dimension", "images"])["spearman"].mean()
    return {
        str(digest): f"{dimension} dimensions rank {images} images as no projection does to a Spearman's ρ of {rho:.2f}"
        for (digest, dimension, images), rho in means.items()
    }
