"""Artifacts on disk (law 5): written whole or not at all, checked when read, set aside when damaged.

What lies where is said in ``bench.records.folder``. Arrays are safetensors and records are JSON or parquet; nothing is
ever unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.errors import DamagedArtifact, ResultsFolderError
from bench.foundation.digests import tensors_digest
from bench.records import folder

DIGEST_KEY = "content_sha256"


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: temporary file beside it, fsync, rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
        raise folder_error(path.parent, error) from error


def folder_error(place: Path, error: OSError) -> ResultsFolderError:
    """Say in the user's words why ``place`` cannot be written."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space, or give another folder with --results",
        errno.EDQUOT: "the disk quota is used up; free some space, or give another folder with --results",
        errno.EACCES: "it is not writable; change its permissions, or give another folder with --results",
        errno.EROFS: "it lies on a read-only file system; give another folder with --results",
        errno.ENOTDIR: "part of its path is a file; give a folder with --results",
        errno.EEXIST: "it is a file; give a folder with --results",
    }
    reason = reasons.get(error.errno or 0, str(error))
    return ResultsFolderError(f"Could not write to the results folder {place}: {reason}.")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Store named tensors with string metadata and a digest of both."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sealed = {**metadata, DIGEST_KEY: tensors_digest(plain, metadata)}
    write_whole(path, save(plain, sealed))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of ``path``; raises DamagedArtifact when they are not what was written."""
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedArtifact(f"{path} cannot be read as safetensors ({error}).") from error
    expected = metadata.pop(DIGEST_KEY, "none")
    found = tensors_digest(tensors, metadata)
    if found != expected:
        raise DamagedArtifact(f"{path} has digest {found[:12]}, expected {expected[:12]}.")
    return tensors, metadata


def write_json(path: Path, value: object) -> None:
    """Store ``value`` as indented JSON."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value stored in ``path``; raises DamagedArtifact when it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{path} cannot be read as JSON ({error}).") from error


class Store:
    """One results folder: paths, locks, and artifacts that are rebuilt when they turn out damaged."""

    def __init__(self, root: Path, *, note: Callable[[str], None] = lambda text: None) -> None:
        self.root = root
        self.note = note

    def path(self, *parts: str) -> Path:
        """Where the artifact named by ``parts`` lies."""
        return self.root.joinpath(*parts)

    def lock(self, name: str, *, timeout: float = -1.0) -> FileLock:
        """A lock between processes that the operating system drops when its holder dies."""
        path = self.path(*folder.lock(name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise folder_error(path.parent, error) from error
        return FileLock(path, timeout=timeout)

    def set_aside(self, path: Path, reason: str) -> None:
        """Move a damaged file or folder to ``damaged/`` so that it is kept for inspection and rebuilt."""
        target = self.path(*folder.damaged(path.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)  # an earlier damage of the same folder
        path.replace(target)
        self.note(f"set aside a damaged file, it will be rebuilt: {reason} Now at {target}.")

    def tensors(self, *parts: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and metadata of an artifact, or None where it is missing or was damaged."""
        path = self.path(*parts)
        if not path.exists():
            return None
        try:
            return read_tensors(path)
        except DamagedArtifact as error:
            self.set_aside(path, str(error))
            return None

    def record(self, *parts: str) -> Any | None:
        """A JSON record, or None where it is missing or was damaged."""
        path = self.path(*parts)
        if not path.exists():
            return None
        try:
            return read_json(path)
        except DamagedArtifact as error:
            self.set_aside(path, str(error))
            return None


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
        parts = folder.artifact(key)
        found = self.store.tensors(*parts)
        if found is None:
            with self.store.lock(f"cache-{key}.safetensors"):
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
        write_tensors(self.store.path(*parts), tensors, seconds=f"{time.perf_counter() - started:.3f}")
        return tensors
