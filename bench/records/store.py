"""Artifacts on disk (law 5): written whole or not at all, checked when read, set aside when damaged.

What lies where is said in ``bench.records.folder``. Arrays are safetensors and records are JSON or parquet
(``bench.records.sealing``); nothing is ever unpickled. Every artifact carries a seal: who it is (its kind and key, from
``folder.identity``) and a digest of that and of its content. A file in another's place is found as a flipped bit is.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from torch import Tensor

from bench.errors import DamagedArtifact, DiskFull, InvalidInput, ResultsFolderError
from bench.records import folder
from bench.records.claims import Claim
from bench.records.sealing import (
    bytes_digest,
    frame_bytes,
    read_frame,
    read_json,
    read_tensors,
    record_bytes,
    tensors_bytes,
)

T = TypeVar("T")
HERE = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "here"
"""This machine, in the names of temporary files."""
TEMPORARY = re.compile(r"\..*\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.[^.]+\.part")
OLD_TEMPORARY = re.compile(r"\..+\.(safetensors|json|parquet|png|pdf|md|csv|html)\.[a-z0-9_]{8}")
"""Written before 2026-11-25."""
DAY_SECONDS = 86400.0
LOCK_ORDER = (
    "scores", "cache", "model", "encoded", "study", "results", "queries", "observations", "digests", "damaged",
)  # fmt: skip
"""What a lock is for is the first word of its name. Whoever holds one takes only later ones, so nobody waits in a ring.

"results" is around rows, manifest, table, figures and board; "cache" may be taken within another "cache" lock, as one
artifact is built of others.
"""


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: temporary file beside it, fsync, rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:80]}.{HERE}.{os.getpid()}.", suffix=".part"
        )
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise folder_error(path.parent, error, len(content)) from error


def folder_error(place: Path, error: OSError, needed: int = 0) -> ResultsFolderError:
    """Say in the user's words why ``place`` cannot be written, where ``needed`` bytes were to be."""
    full = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}.get(error.errno or 0)
    if full:
        size = f" ({needed / 2**20:.1f} MiB were to be written)" if needed else ""
        return DiskFull(
            f"Could not write to the results folder {place}: {full}{size}. What is finished is kept: free some space "
            "and run the same command again, or give another folder with --results."
        )
    reasons = {
        errno.EACCES: "it is not writable; change its permissions, or give another folder with --results",
        errno.EROFS: "it lies on a read-only file system; give another folder with --results",
        errno.ENOTDIR: "part of its path is a file; give a folder with --results",
        errno.EEXIST: "it is a file; give a folder with --results",
    }
    reason = reasons.get(error.errno or 0, str(error))
    return ResultsFolderError(f"Could not write to the results folder {place}: {reason}.")


class Store:
    """One results folder: paths, locks, and artifacts that are rebuilt when they turn out damaged.

    Args:
        root: the folder.
        note: told what is set aside.
        study: digest of the study that the folder belongs to, where that is known: tensors of another are refused.
        read_only: somebody's published folder: damage raises DamagedArtifact, nothing is moved or written.
    """

    def __init__(
        self,
        root: Path,
        *,
        note: Callable[[str], None] = lambda text: None,
        study: str = "",
        read_only: bool = False,
    ) -> None:
        self.root, self.note, self.study, self.read_only = root, note, study, read_only
        self.damage: list[str] = []
        """What was set aside, in words."""

    def path(self, *parts: str) -> Path:
        """Where the artifact named by ``parts`` lies; no part leads out of the folder."""
        for part in parts:
            if not part or part in (".", "..") or "/" in part or "\\" in part or "\0" in part:
                raise InvalidInput(f"Nothing in a results folder can be called {part!r}.")
        return self.root.joinpath(*parts)

    @contextmanager
    def lock(self, name: str, *, timeout: float = -1.0, mark: str = "") -> Iterator[Claim]:
        """Hold a lock between processes, on this machine or others; it falls to another when its holder dies.

        It may be taken again by the thread that holds it. Raises claims.Held after ``timeout`` seconds. ``mark`` is how
        far the work has come (``bench.records.claims``).
        """
        path = self.path(*folder.lock(name))
        held: dict[Path, Claim] = _held.__dict__.setdefault("locks", {})
        if path in held:
            yield held[path]
            return
        rank = _rank(name)
        later = [other.name for other in held if other.parent == path.parent and _rank(other.stem) > rank]
        assert not later, f"lock {name} is taken while {later} is held: see LOCK_ORDER"
        claim = Claim(path, mark)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            claim.acquire(timeout)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise folder_error(path.parent, error) from error
        held[path] = claim
        try:
            yield claim
        finally:
            del held[path]
            with suppress(OSError):  # the folder is gone
                claim.release()

    def clean(self) -> int:
        """Delete temporary files of processes that died; returns how many."""
        found = 0
        for place in folder.places(self.root):
            for path in place.glob(".*"):
                if _is_dead(path):
                    with suppress(OSError):
                        path.unlink()
                        found += 1
        return found

    def set_aside(self, path: Path, reason: str) -> None:
        """Move a damaged file or folder to ``damaged/``, beside those before it; it is kept there for inspection."""
        target = self.path(*folder.damaged(path.name))
        number = 1
        while target.exists():
            number += 1
            target = self.path(*folder.damaged(f"{path.name}.{number}"))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except FileNotFoundError:
            return  # another process was first
        except OSError as error:
            raise folder_error(target.parent, error) from error
        said = f"set aside a damaged file, to be rebuilt: {reason} Now at {target}. {folder.cost(path)}"
        self.damage.append(said)
        self.note(said)

    def tensors(self, *parts: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and metadata of an artifact, or None where it is missing or was damaged."""
        return self._read(self.path(*parts), self._own_tensors)

    def _own_tensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors, metadata = read_tensors(path)
        theirs = metadata.pop("study", "")
        if theirs and self.study and theirs != self.study:
            raise DamagedArtifact(f"{path} belongs to version {theirs} of a study, and this is {self.study}.")
        return tensors, metadata

    def record(self, *parts: str, check: Callable[[Any], str] = lambda value: "") -> Any | None:
        """A JSON record, or None where it is missing or was damaged; ``check`` says what is wrong with its value."""

        def read(path: Path) -> Any:
            value = read_json(path)
            if why := check(value):
                raise DamagedArtifact(f"{path}: {why}.")
            return value

        return self._read(self.path(*parts), read)

    def frame(self, *parts: str) -> pd.DataFrame | None:
        """A parquet frame, or None where it is missing or was damaged."""
        return self._read(self.path(*parts), read_frame)

    def _read(self, path: Path, read: Callable[[Path], T]) -> T | None:
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except DamagedArtifact:
            if self.read_only:
                raise
        with self.lock("damaged"):  # another process may have set it aside and made it anew meanwhile
            try:
                return read(path)
            except FileNotFoundError:
                return None
            except DamagedArtifact as error:
                self.set_aside(path, str(error))
                return None

    def write_tensors(self, parts: folder.Parts, tensors: Mapping[str, Tensor], **metadata: str) -> None:
        """Keep tensors, sealed with the study that they belong to."""
        own = {"study": self.study} if self.study else {}
        write_tensors(self.path(*parts), tensors, **metadata, **own)

    def write_record(self, parts: folder.Parts, value: Mapping[str, Any]) -> None:
        """Keep a JSON record, sealed."""
        write_json(self.path(*parts), value)

    def list_digests(self, written: Iterable[Path]) -> None:
        """Write down the digests of pages, tables and figures, which have no room for their own."""
        with self.lock("digests"):
            kept = self.record(folder.DIGESTS) or {}
            files = {
                name: digest
                for name, digest in dict(kept.get("files", {})).items()
                if self.root.joinpath(name).exists()
            }
            files |= {path.relative_to(self.root).as_posix(): bytes_digest(path) for path in written}
            self.write_record((folder.DIGESTS,), {"files": files})

    def write_frame(self, parts: folder.Parts, frame: pd.DataFrame) -> None:
        """Keep a parquet frame, sealed."""
        path = self.path(*parts)
        write_whole(path, frame_bytes(path, frame))


_held = threading.local()


def _rank(name: str) -> int:
    """The place of a lock in LOCK_ORDER."""
    return LOCK_ORDER.index(name.partition("-")[0])


def _is_dead(path: Path) -> bool:
    """Whether ``path`` is a temporary file that nobody will finish: its process is dead, or it is a day old."""
    found = TEMPORARY.fullmatch(path.name)
    if not found and not OLD_TEMPORARY.fullmatch(path.name):
        return False
    if found and found["host"] == HERE:
        try:
            os.kill(int(found["pid"]), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        return False
    try:
        return time.time() - path.stat().st_mtime > DAY_SECONDS
    except OSError:
        return False


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Store named tensors with string metadata, sealed."""
    write_whole(path, tensors_bytes(path, tensors, metadata))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Store a JSON record, sealed."""
    write_whole(path, record_bytes(path, value))


class Artifacts:
    """The tensors that methods share, built once under a lock and read ever after.

    Args:
        store: of the results folder.

    Attributes:
        spared: how many seconds the artifacts took to build that were found ready, each counted once. Whoever times a
            method adds them, so that its cost does not depend on which method came first.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.spared = store, 0.0
        self._known: set[str] = set()

    def __call__(self, key: str, build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors named by ``key``."""
        if not isinstance(key, str) or not folder.KEY.fullmatch(key):
            raise InvalidInput(
                f"An artifact cannot be called {key!r}: letters, digits, '_', '-', '.', '@', '=', '+' and ',' are "
                "expected, a letter or digit first, at most 200."
            )
        parts = folder.artifact(key)
        found = self.store.tensors(*parts)
        if found is None:
            with self.store.lock(f"cache-{key}"):
                self._known.add(key)  # whoever builds it or waits for it spends that time now
                found = self.store.tensors(*parts)
                if found is None:
                    return self._built(parts, build)
        if key not in self._known:
            self._known.add(key)
            self.spared += float(found[1].get("seconds", 0.0))
        return found[0]

    def _built(self, parts: tuple[str, ...], build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        started = time.perf_counter()
        tensors = {name: value.detach().cpu().contiguous() for name, value in build().items()}
        self.store.write_tensors(parts, tensors, seconds=f"{time.perf_counter() - started:.3f}")
        return tensors
