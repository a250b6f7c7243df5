"""Agreement of projected gradients with the gradients themselves, as a table and beside a method's settings."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.attribution.dimensions import ENOUGH
from bench.records import tables
from bench.records.names import MethodName
from bench.records.store import Store
from bench.report.shown import ReportOnMethods, Table, as_markdown
from bench.report.statistics import interval

HEAD = ("method", "dimension", "Spearman's ρ with no projection [95 % interval]", "images", "queries")


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectionReport(ReportOnMethods):
    """What was found.

    Attributes:
        frame: one line for each method, dimension and query, of all runs in the folder.
    """

    frame: pd.DataFrame

    @property
    def labelled(self) -> pd.DataFrame:
        """The lines of projections, with the method's name, the same for all dimensions."""
        projected = self.frame[self.frame["dimension"] > 0] if len(self.frame) else self.frame
        parts = zip(*(projected.get(name, ()) for name in ("method", "variant", "settings")), strict=True)
        return projected.assign(label=[MethodName(*part).label for part in parts])

    def tables(self) -> list[Table]:
        """The means over queries."""
        if not len(self.labelled):
            return []
        cells = []
        for (label, dimension, images), own in self.labelled.groupby(["label", "dimension", "images"]):
            found = interval(own["spearman"].to_numpy())
            mark = ", as on the board" if own["own"].any() else ""
            cells.append([str(label), f"{dimension}{mark}", f"{found:.2f}", str(images), str(len(own))])
        return [(HEAD, cells)]

    def notes(self) -> list[str]:
        """What was skipped, and the least dimension that is enough for each method."""
        told = super().notes()
        if not len(self.labelled):
            return told
        means = self.labelled.groupby(["label", "dimension"])["spearman"].mean()
        for label, own in means.groupby(level="label"):
            enough = [int(dimension) for (_, dimension), mean in own.items() if mean >= ENOUGH]
            told.append(
                f"{label}: "
                + (f"{min(enough)} dimensions agree to {ENOUGH} or more" if enough else f"none agrees to {ENOUGH}")
            )
        return told

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
        if dimension
        else f"nothing is projected: the gradients of all {images} images fit the memory"
        for (digest, dimension, images), rho in means.items()
    }


def beside(tuned_on: str, of_projection: str | None) -> str:
    """On what settings were tuned, with what is known of the projection."""
    return f"{tuned_on}; {of_projection}" if of_projection else tuned_on
