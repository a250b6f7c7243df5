"""Records of selections: the first ids as they are, which people read and pages show, and the rest packed.

Ten thousand ids of a query as JSON take a quarter of a megabyte, packed a sixth of that.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from bench.errors import DamagedArtifact

FIRST = 1000
MOST_BYTES = 2**28
"""Of what is unpacked."""


def packed(ids: Sequence[str]) -> dict[str, Any]:
    """The parts of a record that name ``ids``, the most influential first."""
    if len(ids) <= FIRST:
        return {"ids": list(ids)}
    rest = zlib.compress("\n".join(ids[FIRST:]).encode(), 1)
    return {"ids": list(ids[:FIRST]), "more": base64.b64encode(rest).decode(), "count": len(ids)}


def selected(record: Mapping[str, Any]) -> list[str]:
    """All ids that a record names; raises DamagedArtifact where it cannot be read."""
    ids = record.get("ids")
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise DamagedArtifact("it has no ids")
    if "more" not in record:
        return ids
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(base64.b64decode(record["more"], validate=True), MOST_BYTES).decode()
    except (ValueError, TypeError, AttributeError, binascii.Error, zlib.error) as error:
        raise DamagedArtifact(f"its ids cannot be unpacked ({error})") from error
    return ids + text.split("\n")


def count(record: Mapping[str, Any]) -> int:
    """How many ids a record names."""
    return int(record.get("count", len(record["ids"])))
