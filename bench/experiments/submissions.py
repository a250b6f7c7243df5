"""Taking part: a method's rows with all that they rest on, in a folder that can be checked before a board takes it in.

A submission is a results folder of one method, with a list of its files and their sha256 (``submission.json``):

    submission.json, manifest.json, study.json     who, how, on which version of the study
    queries.safetensors                            the queries, which are the board's
    selections/                                    what the method named
    results.parquet, observations/                 what was measured, and what it was computed from

It is accepted where every file is what is listed, the study is the one that this code makes, the selections lead to the
models of the rows, the observations give the rows' values, and nothing contradicts the board. Whether the observations
are true, only training again can say: a sample of the removals is made anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from bench.contracts import METHOD
from bench.diffusion.queries import Query, load_queries, save_queries
from bench.diffusion.training import TrainingJob
from bench.errors import BenchError, DamagedArtifact, InvalidInput, ResultsFolderError
from bench.experiments.evaluation import value_of
from bench.experiments.verification import removed_images, study_of, verify_sample
from bench.foundation.progress import Progress
from bench.records import folder as names
from bench.records import rows as results
from bench.records.sealing import bytes_digest, read_sealed, read_tensors
from bench.records.store import Store, write_whole
from bench.registry import metrics, role_of
from bench.report.doctor import examine
from bench.report.merging import has_rows, merge_folders, open_folder
from bench.report.shown import Report, Table
from bench.retraining.executors import Engine
from bench.studies import Study

AGREES = 1e-4
"""A value that is computed again from the same observations differs by this share of itself at most, on any machine."""
SMALL = 1e-7
"""Or by this."""


@dataclass(frozen=True, kw_only=True)
class Submission(Report):
    """A submission, and what checking it found.

    Attributes:
        folder: where it lies.
        method: as tables call it.
        said: what was found in order, a line each.
        refused: why it cannot be taken in; nothing where it can.
    """

    folder: Path
    method: str
    said: Sequence[str]
    refused: Sequence[str] = ()

    def tables(self) -> list[Table]:
        """None: lines say all."""
        return []

    def notes(self) -> list[str]:
        """What was found."""
        return [f"{self.folder}: {self.method}", *self.said]

    def problems(self) -> list[str]:
        """Why it is refused."""
        return [f"refused: {why}" for why in self.refused]


def submit(
    results_folder: Path, label: str, output: Path | None = None, *, board: Path | None = None, own: Study | None = None
) -> Submission:
    """Write the rows of the method ``label`` in ``results_folder``, with what they rest on, and check what was written.

    Args:
        results_folder: of the run.
        label: as its table calls the method.
        output: a new folder; ``submissions/<study>-<method>`` where None.
        board: the results folder of the board, which the rows must not contradict; ``results/<study>`` where None.
        own: the study, where it is a user's own.

    Raises InvalidInput where there is no such row, where the method is a floor, or where ``output`` exists already.
    """
    frame = results.load(Store(results_folder, read_only=True))
    if not len(frame):
        raise ResultsFolderError(f"{results_folder} holds no rows ({names.ROWS}): give the folder of a run.")
    labelled = results.labels(frame)
    chosen = frame[(labelled == label) & (frame["status"] == "done")]
    if not len(chosen):
        raise InvalidInput(
            f"{results_folder} has no finished row of '{label}'; it has: {', '.join(sorted(set(labelled)))}."
        )
    method, study_name = str(chosen["method"].iloc[0]), str(chosen["study"].iloc[0])
    if method in results.NOT_RANKED or role_of(method) != METHOD:
        raise InvalidInput(f"'{label}' is a floor or a ceiling, which the board measures itself: submit a method.")
    run = open_folder(results_folder, study_name)
    target = output or Path(names.SUBMISSIONS) / f"{study_name}-{_as_file_name(label)}"
    if target.exists():
        raise InvalidInput(f"{target} exists already: remove it, or name another folder with --out.")
    study = study_of(results_folder, str(chosen["study_digest"].iloc[0]), own)
    store = Store(target)
    kept = load_queries(Store(results_folder, read_only=True))
    needed = _with_controls(study, kept, chosen)
    store.write_record((names.STUDY,), run.record)
    save_queries(store, {name: kept[name] for name in needed})
    for path in _evidence(results_folder, study, kept, chosen):
        write_whole(target / path.relative_to(results_folder), path.read_bytes())
    store.write_record((names.MANIFEST,), _manifest(run.manifest, method, chosen))
    store.write_frame((names.ROWS,), chosen.reset_index(drop=True))
    first = chosen.iloc[0]
    store.write_record(
        (names.SUBMISSION,),
        {
            "study": study_name,
            "study_digest": study.digest,
            "method": {name: str(first[name]) for name in ("method", "variant", "settings", "method_digest")},
            "label": label,
            "rows": len(chosen),
            "version": version("attribution-bench"),
            "files": {name: bytes_digest(target / name) for name in _files(target)},
        },
    )
    return check(target, board=board, own=own)


def check(
    folder: Path,
    *,
    board: Path | None = None,
    sample: int = 0,
    seed: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    own: Study | None = None,
) -> Submission:
    """Whether the submission in ``folder`` can be taken in.

    Args:
        folder: as ``submit`` writes it.
        board: the results folder of the board; ``results/<study>`` where None.
        sample: how many removals to make anew, drawn by ``seed``; another draw each time where that is None.
        own: the study, where it is a user's own.
    """
    label, said = folder.name, list[str]()
    try:
        record = read_sealed(folder / names.SUBMISSION)
        label = str(record.get("label"))
        for found in _checks(folder, record, board, own):
            said.append(found)
    except FileNotFoundError:
        return _refused(folder, label, said, f"it has no {names.SUBMISSION}: write it by `bench submit`.")
    except BenchError as error:
        return _refused(folder, label, said, str(error))
    if sample:
        verdicts = verify_sample(folder, sample, seed=seed, device=device, progress=progress, study=own)
        said += verdicts.notes()
        return Submission(folder=folder, method=label, said=said, refused=verdicts.problems())
    return Submission(folder=folder, method=label, said=said)


def accepted(board: Path, own: Study | None = None) -> list[Path]:
    """The submissions that lie in the folder ``board``, each checked without training; ``own`` is a user's study.

    Raises ResultsFolderError for the first that is refused, by name.
    """
    found = sorted(path.parent for path in (board / names.SUBMISSIONS).glob(f"*/{names.SUBMISSION}"))
    for folder in found:
        if refused := check(folder, board=board, own=own).refused:
            raise ResultsFolderError(f"The submission {folder} is refused: {refused[0]} Take it out, or mend it.")
    return found


def _refused(folder: Path, label: str, said: Sequence[str], why: str) -> Submission:
    return Submission(folder=folder, method=label, said=said, refused=[why])


def _checks(folder: Path, record: dict[str, Any], board: Path | None, own: Study | None) -> Iterator[str]:
    """What holds of the submission, a line each; raises BenchError for the first that does not."""
    listed, there = record.get("files"), _files(folder)
    if not isinstance(listed, dict) or not isinstance(record.get("method"), dict):
        raise DamagedArtifact(f"{folder / names.SUBMISSION} lists no files, or no method.")
    if odd := sorted(set(listed) ^ set(there)):
        raise DamagedArtifact(f"{odd[0]} is {'missing' if odd[0] in listed else 'not listed'} ({len(odd)} such files).")
    for name in there:
        if bytes_digest(folder / name) != listed[name]:
            raise DamagedArtifact(f"{folder / name} was changed after it was submitted: its sha256 is another.")
    if damages := examine(folder).damages:
        raise DamagedArtifact(f"{damages[0].path}: {damages[0].what}")
    yield f"digests: {len(there)} files are what was submitted"

    run = open_folder(folder, str(record.get("study")))
    rows, study = run.frame, study_of(folder, run.record["digest"], own)
    strange = [
        column for column in ("method", "variant", "settings", "method_digest")
        if set(rows[column]) != {record["method"].get(column)}
    ]  # fmt: skip
    if strange or not rows["status"].eq("done").all() or rows.duplicated(results.KEY_COLUMNS).any():
        raise DamagedArtifact(f"{names.ROWS} holds rows of another method, of failures, or a row twice.")
    yield f"study: '{study.name}' in version {study.digest}, the one that this code makes"

    models = rows.drop_duplicates(["model_key", "query", "k", "seed"])
    keys = _ledger(folder, study)
    queries = load_queries(Store(folder, read_only=True))
    for row in models.to_dict("records"):
        query = _query(queries, row)
        job = TrainingJob(removed_images(folder, study, query, row), row["seed"])
        if len(set(job.removed)) != study.check_budget(row["k"]):
            raise DamagedArtifact(f"{_said(row)}: the selection names an image twice.")
        if keys.key(job) != row["model_key"]:
            raise DamagedArtifact(f"{_said(row)}: the selection does not lead to the model of the row.")
    yield f"selections: they lead to the models of all {len(models)} removals"

    compared, left = 0, set[str]()
    for row in rows.to_dict("records"):
        metric = metrics.create(row["metric"])
        if metric.unavailable():
            left.add(metric.name)
            continue
        if row["evaluator"] != metric.digest:
            raise InvalidInput(f"{_said(row)}: the evaluator {row['evaluator']} is not {metric.digest}, which is here.")
        query = _query(queries, row)
        controls = [queries[spec.id] for spec in study.controls(query) if spec.id in queries]
        original = TrainingJob((), row["seed"] if row["design"] == "paired" else study.seed)
        sides = [_observed(folder, key) for key in (keys.key(original), row["model_key"])]
        try:
            value, why = value_of(metric, query, controls if metric.relative_to_controls else (), *sides)
        except KeyError as error:
            raise DamagedArtifact(f"{_said(row)}: {error} was not observed.") from error
        if why or not math.isclose(value, row["value"], rel_tol=AGREES, abs_tol=SMALL):
            raise DamagedArtifact(f"{_said(row)}: the value is {row['value']!r}, its observations give {value!r}.")
        compared += 1
    yield f"observations: they give the values of {compared} rows" + (
        f"; not computed here: {', '.join(sorted(left))}" if left else ""
    )

    place = Path("results") / study.name if board is None else board
    if not has_rows(place):
        yield f"board: none in {place}; not compared"
        return
    theirs = open_folder(place, study.name)
    merge_folders([theirs, run])
    label = str(record.get("label"))
    same_name = theirs.frame[results.labels(theirs.frame) == label]
    if set(same_name["method_digest"]) - set(rows["method_digest"]):
        raise InvalidInput(f"The board {place} has another method called '{label}': choose another name.")
    both = theirs.frame.merge(rows, on=results.KEY_COLUMNS, suffixes=("", "_sent"))
    if not both["value"].eq(both["value_sent"]).all():
        raise InvalidInput(f"The board {place} has other values of the same rows; leave them out.")
    yield f"board: comparable with {place}"


def _with_controls(study: Study, kept: dict[str, Query], rows: pd.DataFrame) -> list[str]:
    """Ids of the queries of ``rows``, and of their control queries where a metric is relative to these."""
    found = list(dict.fromkeys(map(str, rows["query"])))
    if any(metrics.create(name).relative_to_controls for name in sorted(set(rows["metric"]))):
        found += [spec.id for name in list(found) for spec in study.controls(kept[name]) if spec.id in kept]
    return list(dict.fromkeys(found))


def _evidence(root: Path, study: Study, kept: dict[str, Query], rows: pd.DataFrame) -> Iterator[Path]:
    """The selections of ``rows``, and the observations of both models of each."""
    keys = _ledger(root, study)
    models = set(map(str, rows["model_key"]))
    for design, seed in set(zip(rows["design"], rows["seed"], strict=True)):
        models.add(keys.key(TrainingJob((), int(seed) if design == "paired" else study.seed)))
    for model in sorted(models):
        path = root.joinpath(*names.observation(model))
        if not path.is_file():
            raise ResultsFolderError(f"{root} lacks {path.relative_to(root)}: run its `bench run` command again.")
        yield path
    for name in dict.fromkeys(map(str, rows["query"])):
        digest = str(rows["method_digest"].iloc[0])
        yield from names.selections(root, method_digest=digest, query_digest=kept[name].digest)


def _manifest(manifest: dict[str, Any], method: str, rows: pd.DataFrame) -> dict[str, Any]:
    """What ``manifest`` says of the method, the metrics of ``rows``, and the runs that name the method."""
    digests = set(rows["method_digest"])
    own = {name: fact for name, fact in manifest["methods"].items() if fact.get("digest") in digests}
    measured = {name: fact for name, fact in manifest["metrics"].items() if name in set(rows["metric"])}
    runs = [run for run in manifest.get("runs", []) if method in str(run.get("command")).split()]
    return manifest | {"methods": own, "metrics": measured, "runs": runs or manifest.get("runs", [])}


def _ledger(root: Path, study: Study) -> Any:
    """Of ``root``, to name models by; nothing is trained or written."""
    return Engine(study, root, "cpu", (), 0.0).ledger()


def _observed(root: Path, key: str) -> dict[str, Tensor]:
    path = root.joinpath(*names.observation(key))
    if not path.is_file():
        raise DamagedArtifact(f"There are no observations of the model {key}.")
    return read_tensors(path)[0]


def _query(queries: dict[str, Query], row: dict[Any, Any]) -> Query:
    query = queries.get(row["query"])
    if query is None or query.digest != row["query_digest"]:
        raise DamagedArtifact(f"{_said(row)}: {names.QUERIES} does not hold the query.")
    return query


def _files(root: Path) -> list[str]:
    """The files of a submission but for its list, locks aside."""
    every = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return [path.as_posix() for path in every if path.as_posix() != names.SUBMISSION and path.parts[0] != "locks"]


def _as_file_name(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in label)


def _said(row: dict[Any, Any]) -> str:
    return f"{row['metric']} of {row['query']} at K = {row['k']}"
