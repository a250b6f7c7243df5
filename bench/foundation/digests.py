"""Digests: names for what a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor


def digest_of(value: object, length: int = 16) -> str:
    """Short sha256 of a JSON-serialisable ``value``, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def tensors_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over names, dtypes, shapes, bytes and metadata."""
    sha = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        sha.update(array.numpy().tobytes())
    return sha.hexdigest()
