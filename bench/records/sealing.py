"""Seals: every artifact says who it is, under a digest that covers this and its content.

Tensors carry the seal as metadata of safetensors, JSON records as two keys of their own, frames as metadata of parquet.
Files without a seal are older than 2026-11-25, or are pages and pictures: ``digests.json`` beside them lists the sha256
of their bytes where somebody wrote it down (``bench doctor --seal``); elsewhere they are read unchecked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.errors import DamagedArtifact
from bench.foundation.digests import tensors_digest
from bench.records import folder

DIGEST_KEY = "content_sha256"
"""Of tensors; older than seals, and kept so that older files can be read."""
WHO, SEAL = "artifact", "sha256"
FRAME_WHO, FRAME_SEAL = b"bench.artifact", b"bench.seal"
BLANK = b"bench-sha256:" + b"0" * 64
FILLED = re.compile(rb"bench-sha256:([0-9a-f]{64})")


def tensors_bytes(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file of named tensors with string metadata, sealed for ``path``."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    known = {**metadata, WHO: folder.identity(path)}
    return bytes(save(plain, {**known, DIGEST_KEY: tensors_digest(plain, known)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of ``path``; raises DamagedArtifact when they are not what was written there."""
    content = _bytes(path)  # at once: safe_open opens a file twice, and another process may replace it in between
    try:
        tensors = load(content)
        metadata = dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {}))
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedArtifact(f"{path} cannot be read as safetensors ({error}).") from error
    expected = metadata.pop(DIGEST_KEY, "none")
    found = tensors_digest(tensors, metadata)
    if found != expected:
        raise DamagedArtifact(f"{path} has digest {found[:12]}, expected {expected[:12]}.")
    _expect_identity(path, metadata.pop(WHO, None))
    return tensors, metadata


def record_bytes(path: Path, value: Mapping[str, Any]) -> bytes:
    """The file of a JSON record, sealed for ``path``."""
    known = {**value, WHO: folder.identity(path)}
    return (json.dumps({**known, SEAL: _json_digest(known)}, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> Any:
    """The value stored in ``path``; raises DamagedArtifact when it is no JSON, or not what was written there."""
    content = _bytes(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedArtifact(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(value, dict) or not {WHO, SEAL} & value.keys():
        _expect_listed(path, content)
        return value
    seal = value.pop(SEAL, "none")
    found = _json_digest(value)
    if found != seal:
        raise DamagedArtifact(f"{path} has digest {found[:12]}, expected {str(seal)[:12]}.")
    _expect_identity(path, value.pop(WHO, None))
    return value


def read_sealed(path: Path) -> dict[str, Any]:
    """The record stored in ``path``; raises DamagedArtifact where it has no seal, too."""
    value = read_json(path)
    if not isinstance(value, dict) or not is_sealed(path):
        raise DamagedArtifact(f"{path} does not say whose it is.")
    return value


def frame_bytes(path: Path, frame: pd.DataFrame) -> bytes:
    """The parquet file of ``frame``, sealed for ``path``: the digest is of all bytes but its own."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    seal = {FRAME_WHO: folder.identity(path).encode(), FRAME_SEAL: BLANK}
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **seal}), buffer)
    before, _, after = buffer.getvalue().rpartition(BLANK)
    digest = hashlib.sha256(before + BLANK + after).hexdigest()
    return before + BLANK.partition(b":")[0] + b":" + digest.encode() + after


def read_frame(path: Path) -> pd.DataFrame:
    """The frame stored in ``path``; raises DamagedArtifact when it is no parquet, or not what was written there."""
    content = _bytes(path)
    try:
        table = parquet.read_table(io.BytesIO(content))
        metadata = dict(table.schema.metadata or {})
        who = metadata[FRAME_WHO].decode() if FRAME_WHO in metadata else None
    except Exception as error:  # a flipped bit makes pyarrow raise nearly anything
        raise DamagedArtifact(f"{path} cannot be read as parquet ({error}).") from error
    seals = list(FILLED.finditer(content))
    if not seals and not metadata.keys() & {FRAME_WHO, FRAME_SEAL}:
        _expect_listed(path, content)
    else:
        seal = seals[-1] if seals else None
        blank = content if seal is None else content[: seal.start()] + BLANK + content[seal.end() :]
        found, expected = hashlib.sha256(blank).hexdigest(), "none" if seal is None else seal[1].decode()
        if found != expected:
            raise DamagedArtifact(f"{path} has digest {found[:12]}, expected {expected[:12]}.")
        _expect_identity(path, who)
    try:
        return table.to_pandas()
    except Exception as error:
        raise DamagedArtifact(f"{path} cannot be read as a frame ({error}).") from error


def is_sealed(path: Path) -> bool:
    """Whether the readable file ``path`` carries a digest of its own."""
    if path.suffix == folder.TENSORS:
        return True
    if path.suffix == folder.RECORD:
        value = json.loads(path.read_bytes())
        return isinstance(value, dict) and SEAL in value
    if path.suffix == ".parquet":
        return FRAME_SEAL in (parquet.read_schema(path).metadata or {})
    return False


def check_bytes(path: Path) -> None:
    """Raise DamagedArtifact where ``path``, of whatever kind, is listed with another digest."""
    _expect_listed(path, _bytes(path))


def is_listed(path: Path) -> bool:
    """Whether a ``digests.json`` lists ``path``."""
    return _listed(path) is not None


def bytes_digest(path: Path) -> str:
    """sha256 of the bytes of ``path``."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedArtifact(f"{path} cannot be read ({error}).") from error


def _json_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _expect_identity(path: Path, who: object) -> None:
    if who is not None and who != folder.identity(path):
        raise DamagedArtifact(f"{path} is in another's place: it says that it is {who}.")


def _expect_listed(path: Path, content: bytes) -> None:
    expected = _listed(path)
    if expected is None:
        return
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DamagedArtifact(f"{path} has digest {found[:12]}, {folder.DIGESTS} lists {expected[:12]}.")


def _listed(path: Path) -> str | None:
    """The sha256 that a ``digests.json`` of this results folder, or of the one that it lies in, lists for ``path``."""
    for place in list(path.parents)[:3]:
        index = place / folder.DIGESTS
        if path != index and index.is_file():
            try:
                listed = _index(index, index.stat().st_mtime_ns)
            except (OSError, DamagedArtifact):
                continue
            found = listed.get(path.relative_to(place).as_posix())
            if found is not None:
                return found
    return None


@lru_cache(maxsize=64)
def _index(path: Path, changed: int) -> dict[str, str]:
    return dict(read_json(path).get("files", {}))
