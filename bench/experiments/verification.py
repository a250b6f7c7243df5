"""Recompute a published value from what was published with it: retrain, observe, compare.

The removed images come from the records (``selections/``, or the draw of the random reference), the query from
``queries.safetensors``, the study from its digest. Both models are trained again in a temporary folder; nothing that
was observed before is used. What is not recomputed: the scores behind the selection.

Equal machine kinds and torch versions give the same bits, so the value must be equal. Elsewhere sums are rounded in
another order, and a tolerance is stated: a share of the published values' usual size, as one near zero would have to
be met more exactly than others.
"""

from __future__ import annotations

import random
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.contracts import Metric
from bench.diffusion.queries import Query, load_queries
from bench.diffusion.training import TrainingJob
from bench.errors import BenchError, DamagedArtifact, InvalidInput, ResultsFolderError, TrainingFailed
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.evaluation import Comparison
from bench.experiments.experiment import Experiment, Measured
from bench.experiments.reference import draw_digest, random_removal
from bench.experiments.workspace import Workspace
from bench.foundation.machine import machine_kind
from bench.foundation.progress import Progress
from bench.records import folder as names
from bench.records import rows as results
from bench.records.names import MethodName
from bench.records.sealing import read_json
from bench.records.selections import selected
from bench.records.store import Store
from bench.registry import metrics
from bench.report.shown import Report, Table
from bench.studies import STUDIES, Study, study

MOST_DRAWS = 1000


@dataclass(frozen=True)
class Verified:
    """One value, published and recomputed.

    Attributes:
        row: the published row, as in ``bench.records.rows.COLUMNS``.
        value: recomputed.
        tolerance: largest difference allowed; 0 on the same machine kind.
        same_machine: whether the published model was trained on this machine kind.
    """

    row: dict[str, Any]
    value: float
    tolerance: float
    same_machine: bool

    @property
    def agrees(self) -> bool:
        """Whether the recomputed value is the published one, within the tolerance."""
        return bool(abs(self.value - self.row["value"]) <= self.tolerance)

    def line(self) -> str:
        """For people."""
        row, kind = self.row, "the same machine kind" if self.same_machine else "another machine kind"
        return (
            f"{'agrees' if self.agrees else 'DISAGREES'}: {row['metric']} of {_label(row)}, {row['query']}, "
            f"K = {row['k']}, {row['design']}, seed {row['seed']}: published {row['value']!r}, recomputed "
            f"{self.value!r}, allowed difference {self.tolerance:.3g} ({kind})"
        )


@dataclass(frozen=True, eq=False)
class Verdicts(Report):
    """What verification found.

    Attributes:
        rows: each published row beside its value made anew.
        chosen: how the rows were chosen, in words; "" where they were named.
        failures: why some could not be made anew at all.
    """

    rows: Sequence[Verified]
    chosen: str = ""
    failures: Sequence[str] = ()

    def tables(self) -> list[Table]:
        """None: a line a row says all."""
        return []

    def notes(self) -> list[str]:
        """A line a row."""
        return [*([self.chosen] if self.chosen else []), *(row.line() for row in self.rows)]

    def problems(self) -> list[str]:
        """How many rows disagree, and what failed."""
        wrong = sum(not row.agrees for row in self.rows)
        disagree = [f"{wrong} of {len(self.rows)} published values could not be made again."] if wrong else []
        return [*disagree, *self.failures]


def rows_to_verify(
    folder: Path, *, row: int | None = None, method: str | None = None, query: str | None = None, k: int | None = None
) -> pd.DataFrame:
    """The published rows that are meant: one by its number, or all of a method, query and K.

    Raises InvalidInput where there is none, or where more than one retrained model is meant.
    """
    frame = results.load(Store(folder, read_only=True))
    if not len(frame):
        raise ResultsFolderError(f"{folder} holds no rows ({names.ROWS}): give a results folder with --results.")
    if row is not None:
        if not 0 <= row < len(frame):
            raise InvalidInput(f"--row {row}: {folder} has the rows 0 to {len(frame) - 1}.")
        return frame.iloc[[row]]
    chosen = frame.assign(label=results.labels(frame))
    for name, value in (("label", method), ("query", query), ("k", k)):
        if value is not None:
            chosen = chosen[chosen[name] == value]
    if not len(chosen):
        raise InvalidInput(
            f"No row of {folder} has that method, query and K; methods: {_listed(results.labels(frame))}."
        )
    models = chosen[["model_key", "query"]].drop_duplicates()
    if len(models) > 1:
        raise InvalidInput(
            f"{len(models)} rows are meant; name one by --row, or by --method, --query and --k "
            f"(methods: {_listed(chosen['label'])}; queries: {_listed(chosen['query'])}; K: {_listed(chosen['k'])})."
        )
    return chosen.drop(columns="label")


def rows_by_chance(folder: Path, count: int, seed: int) -> list[pd.DataFrame]:
    """The rows of ``count`` removals of the folder (or of all, if it has fewer), drawn by ``seed``.

    A removal is one retrained model, seen on one query, in one design; rows of failed trainings are left out.
    """
    if count < 1:
        raise InvalidInput(f"--sample {count}: at least 1 is expected.")
    frame = results.load(Store(folder, read_only=True))
    done = frame[(frame["status"] == "done") & (frame["k"] > 0)]
    if not len(done):
        raise ResultsFolderError(f"{folder} holds no removals ({names.ROWS}): give a results folder with --results.")
    removals = [rows for _, rows in done.groupby(["model_key", "query", "method_digest", "design"], sort=True)]
    return random.Random(seed).sample(removals, min(count, len(removals)))


@dataclass(frozen=True, kw_only=True)
class Verification(Experiment[Verdicts]):
    """A published row of each metric, made anew: one query, one retrained model.

    Attributes:
        published: the folder that holds the rows.
        records: the rows.
        tolerance: for a machine kind other than the published one, a share of the mean absolute value that the folder
            has of the same metric, design and K; None for the study's ``rounding``.
    """

    published: Path
    records: Sequence[dict[str, Any]]
    tolerance: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The first of the rows: they share query and model."""
        return self.records[0]

    def asked(self, workspace: Workspace, *, ahead: bool) -> tuple[list[Query], Controls]:
        """The published query and its controls: what is verified is the row, not the query's making."""
        kept, row = load_queries(Store(self.published, read_only=True)), self.row
        query = kept.get(row["query"])
        if query is None or query.digest != row["query_digest"]:
            raise InvalidInput(
                f"{self.published} does not hold the row's query {row['query']} (digest {row['query_digest']})."
            )
        specs = self.control_specs(query)
        absent = [spec.id for spec in specs if spec.id not in kept]
        if absent:
            raise InvalidInput(f"{self.published} does not hold the control queries {', '.join(absent)}.")
        return [query], {query.id: tuple(kept[spec.id] for spec in specs)}

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """What the row compares, from the published records."""
        [query], row = queries, self.row
        retrained = TrainingJob(removed_images(self.published, self.study, query, row), row["seed"])
        if workspace.ledger.key(retrained) != row["model_key"]:
            raise InvalidInput(
                f"The row's model {row['model_key']} is not the one that its records lead to "
                f"({workspace.ledger.key(retrained)}): row and records do not belong together."
            )
        comparison = Comparison(
            named=MethodName(row["method"], row["variant"], row["settings"]),
            method_digest=row["method_digest"],
            query=query,
            k=row["k"],
            retrained=retrained,
            original=TrainingJob((), row["seed"] if row["design"] == "paired" else self.study.seed),
            score_seconds=0.0,
            controls=controls[query.id],
        )
        return Chosen(comparisons=[comparison])

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> Verdicts:
        """Each row beside the published one."""
        if measured.failed:
            raise TrainingFailed("; ".join(sorted(set(measured.failed.values()))))
        same = self.row["machine"] == machine_kind(workspace.device)
        published = results.load(Store(self.published, read_only=True))
        share = self.study.rounding if self.tolerance is None else self.tolerance
        return Verdicts(
            [
                Verified(record, row.value, 0.0 if same else share * _usual_size(published, record), same)
                for record, row in zip(self.records, measured.rows, strict=True)
            ]
        )


def verify(
    folder: Path,
    rows: pd.DataFrame,
    *,
    device: str = "cpu",
    tolerance: float | None = None,
    progress: Progress | None = None,
    study: Study | None = None,
) -> Verdicts:
    """Recompute ``rows`` of the results folder ``folder``, which belong to one query and one retrained model.

    ``study`` is needed where it is a user's own.
    """
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as fresh:
        return _verified(folder, rows, Path(fresh), device, tolerance, progress, study)


def verify_sample(
    folder: Path,
    count: int,
    *,
    seed: int | None = None,
    device: str = "cpu",
    tolerance: float | None = None,
    progress: Progress | None = None,
    study: Study | None = None,
) -> Verdicts:
    """Recompute the rows of ``count`` removals drawn by chance; a new draw each time unless ``seed`` is given.

    What cannot be made anew is told with the rest, and costs no other row.
    """
    seed = secrets.randbelow(2**32) if seed is None else seed
    removals = rows_by_chance(folder, count, seed)
    found: list[Verified] = []
    failures = []
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as fresh:
        for rows in removals:
            try:
                found += _verified(folder, rows, Path(fresh), device, tolerance, progress, study).rows
            except BenchError as error:
                first = rows.to_dict("records")[0]
                failures.append(f"{_label(first)}, {first['query']}, K = {first['k']}: {error}")
    return Verdicts(found, f"{len(removals)} removals drawn by chance (--seed {seed} draws them again)", failures)


def _verified(
    folder: Path,
    rows: pd.DataFrame,
    fresh: Path,
    device: str,
    tolerance: float | None,
    progress: Progress | None,
    own: Study | None,
) -> Verdicts:
    """``verify`` in the folder ``fresh``, where only models of earlier verifications may lie."""
    records = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    failed = [record for record in records if record["status"] != "done"]
    if failed:
        raise InvalidInput(f"The row is published as failed ({failed[0]['reason']}): there is no value to verify.")
    chosen: list[Metric] = [metrics.create(record["metric"]) for record in records]
    for metric, record in zip(chosen, records, strict=True):
        metric.prepare()
        if record["evaluator"] not in ("", metric.digest):
            raise InvalidInput(
                f"'{metric.name}' was published by evaluator {record['evaluator']}; here it is {metric.digest} "
                "(another version, or other weights): values cannot be compared."
            )
    experiment = Verification(
        study=study_of(folder, records[0]["study_digest"], own), metrics=chosen, results=fresh, device=device,
        published=folder, records=records, tolerance=tolerance,
    )  # fmt: skip
    return experiment.execute(progress)


def _usual_size(published: pd.DataFrame, row: dict[str, Any]) -> float:
    """Mean absolute value of the ``published`` values of the row's metric, design and K, itself among them."""
    alike = (published[["metric", "design", "k"]] == [row["metric"], row["design"], row["k"]]).all(axis=1)
    return float(published.loc[alike, "value"].abs().mean())


def study_of(folder: Path, digest: str, own: Study | None = None) -> Study:
    """The study of the folder, if this code still makes the version ``digest`` of it; ``own`` where it is a user's."""
    try:
        record = read_json(folder / names.STUDY)
    except FileNotFoundError:
        raise ResultsFolderError(
            f"{folder} has no {names.STUDY}: it cannot be told which study its rows are of."
        ) from None
    if not isinstance(record, dict) or not isinstance(record.get("parts"), dict) or "seed" not in record["parts"]:
        raise DamagedArtifact(f"{folder / names.STUDY} has no parts.")
    if own is None and record["name"] not in STUDIES:
        raise InvalidInput(
            f"{folder} is of study '{record['name']}', which is not one of {', '.join(STUDIES)}: if it is one of your "
            "own, name its file with --study."
        )
    the_study = replace(own or study(record["name"]), seed=record["parts"]["seed"])
    if the_study.digest != digest:
        raise InvalidInput(
            f"The row is of version {digest} of study '{record['name']}'; this code makes version "
            f"{the_study.digest}: check out the version that the manifest names."
        )
    return the_study


def removed_images(folder: Path, the_study: Study, query: Query, row: dict[str, Any]) -> tuple[int, ...]:
    """Indices of the images that were left out."""
    if row["method"] == results.NOTHING_REMOVED:
        return ()
    if row["method"] == results.REFERENCE:
        draw = next((draw for draw in range(MOST_DRAWS) if draw_digest(draw) == row["method_digest"]), None)
        if draw is None:
            raise InvalidInput(f"The draw {row['method_digest']} of the random reference is none of {MOST_DRAWS}.")
        return random_removal(the_study, draw, row["k"])
    found = names.selections(folder, method_digest=row["method_digest"], query_digest=query.digest)
    ids = selected(read_json(found[0])) if found else []
    if len(ids) < row["k"]:
        raise InvalidInput(
            f"{folder}/selections holds {len(ids)} ids for {_label(row)} ({row['method_digest']}) and {query.id}; "
            f"{row['k']} were removed."
        )
    place = {image: index for index, image in enumerate(the_study.dataset.ids)}
    unknown = [image for image in ids[: row["k"]] if image not in place]
    if unknown:
        raise DamagedArtifact(f"{found[0]} names images that the study does not have: {', '.join(unknown[:3])}.")
    return tuple(sorted(place[image] for image in ids[: row["k"]]))


def _label(row: dict[str, Any]) -> str:
    return MethodName(row["method"], row["variant"], row["settings"]).label


def _listed(column: pd.Series[Any]) -> str:
    return ", ".join(str(value) for value in sorted(column.unique()))
