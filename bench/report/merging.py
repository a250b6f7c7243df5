"""Runs merged: the rows of several results folders as one frame, or the reason why they must not be compared.

Rows are compared only where they are of one study version, where each metric is defined alike (unit, observation,
version, encoder), and where a query's name stands for the same query. A folder that a run has not finished is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.diffusion import queries as query_file
from bench.errors import DamagedArtifact, ResultsFolderError
from bench.records import folder as names
from bench.records import rows as results
from bench.records import tables
from bench.records.sealing import read_frame, read_json, read_tensors
from bench.records.selections import selected
from bench.records.store import Store
from bench.studies import HELD_OUT


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A results folder that one or more runs have finished.

    Attributes:
        root: the folder.
        record: what the study is (``study.json``).
        manifest: what produced the rows.
        frame: the rows, columns as ``bench.records.rows.COLUMNS``.
    """

    root: Path
    record: dict[str, Any]
    manifest: dict[str, Any]
    frame: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Rows of comparable runs.

    Attributes:
        record: what the study is.
        manifest: of all folders: methods, metrics and every run.
        frame: the rows.
        notes: what a reader should know of the merge.
    """

    record: dict[str, Any]
    manifest: dict[str, Any]
    frame: pd.DataFrame
    notes: tuple[str, ...]


def has_rows(root: Path) -> bool:
    """Whether some run has written rows into ``root``."""
    return (root / names.ROWS).exists()


def places_to_merge(study: str, sources: Sequence[Path], root: Path, rows: str = names.ROWS) -> list[Path]:
    """``root`` first where it has the file ``rows``, then ``sources``, each once.

    Raises ResultsFolderError where that is none.
    """
    own = [root] if (root / rows).exists() else []
    if not (own or sources):
        raise ResultsFolderError(
            f"There are no runs of study '{study}' in {root}: make one with `bench run --study {study} "
            f"--method NAME --results {root}`, or name folders that hold some with --from."
        )
    found: dict[Path, Path] = {}
    for path in [*own, *sources]:
        found.setdefault(path.resolve(), path)
    return list(found.values())


def open_folder(root: Path, study: str) -> RunFolder:
    """The folder's rows and what produced them; raises ResultsFolderError where it is no finished run of ``study``."""
    if not root.is_dir():
        raise ResultsFolderError(f"There is no results folder {root}: make it with `bench run --results {root}`.")
    missing = [name for name in names.NEEDED if not (root / name).exists()]
    if missing:
        raise ResultsFolderError(
            f"The results folder {root} is half written: it has no {', '.join(missing)}. Run its `bench run` command "
            "again (what is trained is kept), or leave it out of --from."
        )
    record, manifest = (
        _record(root / names.STUDY, "digest", "name", "parts"),
        _record(root / names.MANIFEST, "methods", "metrics"),
    )
    frame = _rows(root / names.ROWS)
    read_tensors(root / names.QUERIES)  # a damaged file of somebody's is named here, not moved later
    if record["name"] != study:
        raise ResultsFolderError(f"The folder {root} holds study '{record['name']}', and --study says '{study}'.")
    alien = frame[frame["study_digest"] != record["digest"]]
    if len(alien):
        raise ResultsFolderError(
            f"The folder {root} holds version {record['digest']} of its study and rows of others: "
            f"{_described(alien)}, version {', '.join(sorted(set(alien['study_digest'])))}. Run these again."
        )
    tuning = frame[frame["query"].str.startswith(HELD_OUT)]
    if len(tuning):
        raise ResultsFolderError(
            f"{root / names.ROWS} holds held-out queries, which are for tuning and never reported: "
            f"{_described(tuning)}. Leave the folder out of --from."
        )
    return RunFolder(root=root, record=record, manifest=manifest, frame=frame)


def merge_folders(folders: Sequence[RunFolder]) -> Merged:
    """One frame of all rows, refused where rows cannot be compared; a later folder's row replaces an earlier one's."""
    first = folders[0]
    for other in folders[1:]:
        _check_study(first, other)
    _check_metrics(folders)
    _check_queries(folders)
    every = pd.concat([folder.frame for folder in folders], ignore_index=True)
    every["_done"] = (every["status"] == "done") & np.isfinite(every["value"])
    notes = _contradictions(every)
    every = every.sort_values("_done", kind="stable").drop_duplicates(results.KEY_COLUMNS, keep="last")
    frame = every.drop(columns="_done")[list(results.COLUMNS)]
    frame = frame.sort_values(["method", "k", "query", "metric", "design", "seed"], ignore_index=True)
    return Merged(record=first.record, manifest=_manifest(folders), frame=frame, notes=tuple(notes))


def keep(merged: Merged, folders: Sequence[RunFolder], store: Store) -> None:
    """Write the merged rows, and the records that they rest on, into one folder, which then stands alone."""
    for folder in folders:
        if folder.root.resolve() != store.root.resolve():
            _copy_records(folder.root, store)
            _copy_tables(folder.root, store)
    store.write_record((names.STUDY,), merged.record)
    store.write_record((names.MANIFEST,), merged.manifest)
    store.write_frame((names.ROWS,), merged.frame)


def _record(path: Path, *expected: str) -> dict[str, Any]:
    """A JSON record that has the keys ``expected``."""
    record = read_json(path)
    missing = [key for key in expected if not isinstance(record, dict) or key not in record]
    if missing:
        raise DamagedArtifact(f"{path} has no {', '.join(missing)}; run the folder's `bench run` command again.")
    return dict(record)


def _rows(path: Path) -> pd.DataFrame:
    try:
        frame = read_frame(path)
    except DamagedArtifact as error:
        raise DamagedArtifact(f"{error} Run the folder's `bench run` commands again.") from error
    missing = [name for name in results.COLUMNS if name not in frame.columns]
    if missing:
        raise DamagedArtifact(f"{path} lacks the columns {', '.join(missing)} (results/README.md tells what they are).")
    if frame.empty:
        raise ResultsFolderError(f"{path} holds no rows yet; run the folder's `bench run` command to its end.")
    return frame[list(results.COLUMNS)].astype({name: kind for name, (kind, _) in results.COLUMNS.items()})


def _check_study(one: RunFolder, other: RunFolder) -> None:
    if one.record["digest"] == other.record["digest"]:
        return
    theirs, ours = other.record["parts"], one.record["parts"]
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    raise ResultsFolderError(
        f"{one.root} holds version {one.record['digest']} of study '{one.record['name']}' ({_described(one.frame)}), "
        f"{other.root} version {other.record['digest']} ({_described(other.frame)}). They differ in: "
        f"{', '.join(differing) or 'the digest alone'}. Values of different versions are never mixed: "
        "leave one of them out of --from."
    )


def _check_metrics(folders: Sequence[RunFolder]) -> None:
    """Each metric must be defined alike, and one kind of metric must use one encoder."""
    for index, other in enumerate(folders):
        for one in folders[:index]:
            ours, theirs = _definitions(one), _definitions(other)
            for name in sorted({*ours, *theirs}):
                if name in ours and name in theirs and ours[name] != theirs[name]:
                    both = {**ours[name], **theirs[name]}
                    what = [key for key in both if ours[name].get(key) != theirs[name].get(key)]
                    raise ResultsFolderError(_metric_refusal(one, other, {name}, f"in its {', '.join(sorted(what))}"))
            for kind in {_kind(name) for name in ours} & {_kind(name) for name in theirs}:
                mine, others = ({n for n in side if _kind(n) == kind} for side in (ours, theirs))
                if not mine & others:
                    how = f"{', '.join(sorted(mine))} here, {', '.join(sorted(others))} there"
                    raise ResultsFolderError(_metric_refusal(one, other, mine | others, f"in the encoder ({how})"))


def _definitions(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The definition of each metric that has rows; version 1 where none is written."""
    known = folder.manifest["metrics"]
    texts = ("summary", "higher_is_better")
    return {
        name: {"version": 1} | {key: value for key, value in known.get(name, {}).items() if key not in texts}
        for name in sorted(set(folder.frame["metric"]))
    }


def _kind(metric: str) -> str:
    """A metric's name without its encoder: "regeneration_similarity" of "regeneration_similarity[clip]"."""
    return re.split(r"[\[@:(]", metric, maxsplit=1)[0]


def _metric_refusal(one: RunFolder, other: RunFolder, names: set[str], how: str) -> str:
    sides = "; ".join(
        f"{folder.root}: {_described(folder.frame[folder.frame['metric'].isin(names)])}" for folder in (one, other)
    )
    return (
        f"The metric {_kind(min(names))} differs {how} between {one.root} and {other.root}; its values cannot be "
        f"compared. Rows: {sides}. Evaluate one folder again with `bench run`, or leave it out of --from."
    )


def _check_queries(folders: Sequence[RunFolder]) -> None:
    """One name, one query: pairs by query would otherwise compare different images."""
    every = pd.concat([folder.frame.assign(folder=str(folder.root)) for folder in folders])
    for query, rows in every.groupby("query"):
        digests = sorted(set(rows["query_digest"]))
        if len(digests) > 1:
            sides = "; ".join(
                f"{digest}: {_described(own)} in {', '.join(sorted(set(own['folder'])))}"
                for digest, own in rows.groupby("query_digest")
            )
            raise ResultsFolderError(
                f"Query {query} is not the same image everywhere ({sides}). Copy queries.safetensors of one folder to "
                "the others before their runs, or leave one of them out of --from."
            )


def _contradictions(every: pd.DataFrame) -> list[str]:
    """A note where folders hold different values of one row; the later one is kept."""
    done = every[every["_done"]]
    spread = done.groupby(results.KEY_COLUMNS)["value"].agg(["min", "max"])
    differing = spread[~np.isclose(spread["min"], spread["max"], rtol=1e-3, atol=1e-9)]
    if differing.empty:
        return []
    return [f"{len(differing)} values differ between folders (machines); the later folder's are kept."]


def _described(rows: pd.DataFrame) -> str:
    """Which rows, in words."""
    named = sorted(set(rows["method"]))
    listed = ", ".join(named[:6]) + (", …" if len(named) > 6 else "")
    return f"{len(rows)} rows of {listed}"


def _manifest(folders: Sequence[RunFolder]) -> dict[str, Any]:
    """The last folder's manifest with the methods, metrics and runs of all."""
    manifest = dict(folders[-1].manifest)
    for part in ("methods", "metrics"):
        joined = {name: fact for folder in folders for name, fact in folder.manifest[part].items()}
        manifest[part] = dict(sorted(joined.items()))
    runs: list[Mapping[str, Any]] = []
    for folder in folders:
        runs += [run for run in folder.manifest.get("runs", []) if run not in runs]
    manifest["runs"] = runs
    return manifest


def _copy_records(root: Path, store: Store) -> None:
    """Queries, selections and observations of ``root`` joined to those of ``store``."""
    queries = query_file.load_queries(Store(root, read_only=True))
    with store.lock("queries"):
        query_file.save_queries(store, queries | query_file.load_queries(store))
    for path in names.selections(root):
        target = store.path(*path.relative_to(root).parts)
        found = store.record(*target.relative_to(store.root).parts)
        theirs = read_json(path)
        if found is None or len(selected(found)) < len(selected(theirs)):
            store.write_record(target.relative_to(store.root).parts, theirs)
    for path in names.observations(root):
        parts = path.relative_to(root).parts
        with store.lock(f"observations-{path.stem}"):
            tensors, facts = read_tensors(path)
            facts.pop("study", None)
            kept, own = store.tensors(*parts) or ({}, {})
            if not kept or not tensors.keys() <= kept.keys():
                store.write_tensors(parts, tensors | kept, **(facts | own))


def _copy_tables(root: Path, store: Store) -> None:
    """The lines of every other table of ``root`` joined to those of ``store``."""
    for table in tables.EVERY:
        lines = table.read(Store(root, read_only=True))
        if lines is not None:
            table.merge(store, lines)
