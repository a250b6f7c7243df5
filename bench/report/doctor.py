"""``bench doctor``: a whole results folder looked through, one's own or a published one; nothing in it is changed.

Every file is read and its seal checked (``bench.records.sealing``). What the files say of each other is checked too: a
row must be of the folder's study, its query must be the one that is kept, and the model that it names must be the one
that its selection leads to. So a file that is too old to have a seal is not believed blindly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.data import encoded
from bench.diffusion.queries import Query, load_queries
from bench.errors import DamagedArtifact, InvalidInput, ResultsFolderError
from bench.foundation.digests import digest_of
from bench.records import folder as names
from bench.records import rows as results
from bench.records import sealing
from bench.records.selections import selected
from bench.records.store import Store, write_json
from bench.report.shown import Report, Table

TRANSIENT = ("damaged", "locks", "logs", "work")
RUNNING = ("locks", "logs", "work")
"""Of runs under way."""
READERS = {names.TENSORS: sealing.read_tensors, names.RECORD: sealing.read_json, ".parquet": sealing.read_frame}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged file.

    Attributes:
        path: relative to the folder.
        what: is wrong.
        costs, heals: in words.
    """

    path: str
    what: str
    costs: str
    heals: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Health(Report):
    """What was found in one results folder.

    Attributes:
        root: the folder.
        checked: how many files have a digest and fit it.
        unchecked: files that can be read and have no digest to compare with.
        damages: files that are not what was written.
        leftovers: temporary files of processes that died, and what was set aside before.
        seconds: that it took.
    """

    root: Path
    checked: int
    unchecked: Sequence[str]
    damages: Sequence[Damage]
    leftovers: Sequence[str]
    seconds: float

    def tables(self) -> list[Table]:
        """None: a line for each damaged file says all."""
        return []

    def notes(self) -> list[str]:
        """The damage, and how much was checked."""
        some = ", ".join(self.unchecked[:5]) + (", …" if len(self.unchecked) > 5 else "")
        return [
            *(f"DAMAGED {each.path}: {each.what} It costs {each.costs}; {each.heals}." for each in self.damages),
            f"{self.root}: {self.checked} files checked, {len(self.damages)} damaged, {len(self.unchecked)} without a "
            f"digest ({self.seconds:.1f} s)",
            *([f"read unchecked: {some}; `bench doctor --seal {self.root}` writes theirs down"] if some else []),
            *([f"left over: {', '.join(self.leftovers)}"] if self.leftovers else []),
        ]

    def problems(self) -> list[str]:
        """Damaged files."""
        return [f"{len(self.damages)} files of {self.root} are damaged."] if self.damages else []


def examine(root: Path) -> Health:
    """Look through the results folder ``root``."""
    started = time.perf_counter()
    if not root.is_dir():
        raise ResultsFolderError(f"There is no results folder {root}.")
    if not any((root / name).exists() for name in (names.STUDY, names.ROWS, names.MANIFEST)):
        raise ResultsFolderError(
            f"{root} is no results folder: it has none of {names.STUDY}, {names.ROWS}, {names.MANIFEST}."
        )
    damages, unchecked, leftovers, checked = [], [], [], 0
    for path in _files(root):
        place = path.relative_to(root).as_posix()
        if path.name.startswith(".") or path.relative_to(root).parts[0] in TRANSIENT:
            leftovers += [] if path.relative_to(root).parts[0] in RUNNING else [place]
            continue
        try:
            sealed = _is_checked(path)
        except FileNotFoundError:
            continue  # a run is under way
        except DamagedArtifact as error:
            damages.append(_damage(root, path, str(error)))
            continue
        checked += sealed
        unchecked += [] if sealed else [place]
    broken = {damage.path for damage in damages}
    said = [*_contradictions(root), *(_below(names.TUNING, each) for each in _contradictions(root / names.TUNING))]
    damages += [each for each in said if each.path not in broken]
    return Health(
        root=root, checked=checked, unchecked=unchecked, damages=damages, leftovers=leftovers,
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def seal(root: Path) -> Health:
    """Write the digests of the files of ``root`` that have none into ``digests.json``; refused where it is damaged."""
    found = examine(root)
    stale = {names.DIGESTS}
    real = [each for each in found.damages if each.path not in stale and not _is_made_anew(root / each.path)]
    if real:
        raise DamagedArtifact(
            f"{len(real)} files of {root} are damaged ({', '.join(each.path for each in real[:3])}): mend them first."
        )
    listed = {}
    for path in _files(root):
        place = path.relative_to(root)
        if path.name.startswith(".") or place.parts[0] in (*TRANSIENT, "cache", "checkpoints", "models"):
            continue
        if path.name != names.DIGESTS and not _own_seal(path):
            listed[place.as_posix()] = sealing.bytes_digest(path)
    with Store(root).lock("digests"):
        write_json(root / names.DIGESTS, {"files": listed})
    return examine(root)


def _files(root: Path) -> Iterator[Path]:
    """All files, the arrays of an encoded data set as their folder."""
    for path in sorted(root.rglob("*")):
        if path.is_dir() == _is_encoded(path) and not _is_encoded(path.parent):
            yield path


def _is_encoded(path: Path) -> bool:
    """Whether ``path`` is an encoded data set, or one that was not finished."""
    return path.is_dir() and path.parent.name == "cache" and path.name.lstrip(".").startswith(names.ENCODED)


def _is_checked(path: Path) -> bool:
    """Whether ``path`` has a digest, which it fits; raises DamagedArtifact where it does not, or cannot be read."""
    if path.is_dir():
        encoded.check(path)
        return True
    if path.suffix in READERS:
        READERS[path.suffix](path)
        return _own_seal(path) or sealing.is_listed(path)
    sealing.check_bytes(path)
    return sealing.is_listed(path)


def _own_seal(path: Path) -> bool:
    """Whether the file carries its own digest."""
    return path.is_dir() or (path.suffix in READERS and sealing.is_sealed(path))


def _is_made_anew(path: Path) -> bool:
    return not names.kind(path) and path.suffix not in READERS


def _below(folder: str, damage: Damage) -> Damage:
    return replace(damage, path=f"{folder}/{damage.path}")


def _damage(root: Path, path: Path, what: str) -> Damage:
    costs, heals = names.COSTS.get(names.kind(path), names.MADE_ANEW)
    shown = what.replace(f"{path}: ", "").replace(f"{path} ", "").rstrip(".") + "."
    return Damage(path=path.relative_to(root).as_posix(), what=shown, costs=costs, heals=heals)


def _contradictions(root: Path) -> Iterator[Damage]:
    """Files that can be read, and that say of each other what cannot be."""
    rows_file = root / names.ROWS
    if not rows_file.exists():
        return
    try:
        frame = results.completed(sealing.read_frame(rows_file))
    except DamagedArtifact as error:
        yield _damage(root, rows_file, str(error))
        return
    for what in _row_faults(frame):
        yield _damage(root, rows_file, what)
    study = _read(root / names.STUDY)
    home = root if study else root.parent if root.name == names.TUNING else root
    study = study or _read(home / names.STUDY)
    if not study or "digest" not in study:
        yield _damage(root, root / names.STUDY, "it is missing or cannot be read")
        return
    alien = sorted(set(frame["study_digest"]) - {study["digest"]})
    if alien:
        yield _damage(root, rows_file, f"it holds rows of other versions of the study: {', '.join(alien)}")
    if "parts" in study and digest_of(study["parts"]) != study["digest"]:
        yield _damage(root, home / names.STUDY, "its digest is not that of its parts")
    try:
        queries = load_queries(Store(home, read_only=True))
    except (DamagedArtifact, ValueError, KeyError):
        return  # said already
    yield from _query_faults(root, frame, queries)
    yield from _selection_faults(root, home, frame, str(study["digest"]), queries)
    if root.name != names.TUNING:  # what tuning observed need not be kept: no page shows it
        yield from _observation_faults(root, frame, study, queries)


def _row_faults(frame: pd.DataFrame) -> Iterator[str]:
    double = int(frame.duplicated(results.KEY_COLUMNS).sum())
    if double:
        yield f"{double} rows come more than once"
    odd = sorted(set(frame["status"]) - {"done", "failed"}) + sorted(set(frame["design"]) - {"paired", "unpaired"})
    if odd:
        yield f"it has the status or design {', '.join(map(repr, odd))}"
    if int((frame["value"].isna() & (frame["status"] == "done")).sum()):
        yield "it has rows that are done and have no value"


def _query_faults(root: Path, frame: pd.DataFrame, queries: dict[str, Query]) -> Iterator[Damage]:
    for name, digest in frame[["query", "query_digest"]].drop_duplicates().itertuples(index=False):
        if name not in queries:
            yield _damage(root, root / names.QUERIES, f"it lacks {name}, which has rows")
        elif queries[name].digest != digest:
            yield _damage(root, root / names.QUERIES, f"{name} is not the image that the rows are about")


def _selection_faults(
    root: Path, home: Path, frame: pd.DataFrame, study: str, queries: dict[str, Query]
) -> Iterator[Damage]:
    """Selections that do not lead to the models that rows name."""
    own = frame[~frame["method"].isin(results.NOT_RANKED)]
    columns = ["method", "method_digest", "query_digest", "k", "seed", "model_key"]
    said: set[Path] = set()
    for method, method_digest, query_digest, k, seed, key in own[columns].drop_duplicates().itertuples(index=False):
        try:
            path = Store(home).path(*names.selection(method, method_digest, query_digest))
        except InvalidInput:
            yield _damage(root, root / names.ROWS, f"a row names the method {method!r}, which no method can be called")
            continue
        if path in said:
            continue
        record = _read(path)
        if record is None:
            continue  # its removal cannot be repeated from the records; `bench verify` says so
        try:
            ids = selected(record)
        except DamagedArtifact as error:
            said.add(path)
            yield _damage(home, path, str(error))
            continue
        if len(ids) < k:
            said.add(path)
            yield _damage(home, path, f"it holds fewer than {k} ids")
        elif digest_of([study, sorted(map(str, ids[:k])), int(seed)]) != key:
            said.add(path)
            yield _damage(home, path, f"its first {k} images are not those that model {key} was trained without")


def _observation_faults(
    root: Path, frame: pd.DataFrame, study: Mapping[str, Any], queries: dict[str, Query]
) -> Iterator[Damage]:
    """Observations that values were computed from, of the model without the images or of the original, and are gone."""
    metrics = (_read(root / names.MANIFEST) or {}).get("metrics", {})
    observed_by = {metric: facts["observation"] for metric, facts in metrics.items() if "observation" in facts}
    seed = study.get("parts", {}).get("seed")
    own = frame[
        (frame["status"] == "done") & frame["metric"].isin(list(observed_by)) & frame["query"].isin(list(queries))
    ]
    wanted: dict[str, set[tuple[str, str]]] = {}
    columns = ["query", "metric", "design", "seed", "model_key"]
    for query, metric, pairing, judge, key in own[columns].drop_duplicates().itertuples(index=False):
        original = digest_of([study["digest"], [], int(judge) if pairing == "paired" else seed])
        for model in (key, original):
            wanted.setdefault(model, set()).add((query, observed_by[metric]))
    for model, asked in sorted(wanted.items()):
        path = root.joinpath(*names.observation(model))
        try:
            kept, _ = sealing.read_tensors(path)
        except FileNotFoundError:
            kept = {}
        except DamagedArtifact:
            continue  # said already
        lost = sorted((name, what) for name, what in asked if queries[name].observed_as(what) not in kept)
        if lost:
            some = ", ".join(f"{what} of {name}" for name, what in lost[:3]) + (", …" if len(lost) > 3 else "")
            yield _damage(root, path, f"it lacks {some}, from which rows were computed")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = sealing.read_json(path)
    except (DamagedArtifact, FileNotFoundError):
        return None
    return value if isinstance(value, dict) else None
