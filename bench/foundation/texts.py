"""Values written as text: on a command line, in an older label."""

from __future__ import annotations

import json
import re
from typing import Any

from bench.errors import InvalidInput

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parsed(text: str) -> Any:
    """A number, true, false or null as JSON writes them, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def seconds(text: str) -> float:
    """Of a time such as 90s, 55m, 4h, 2d or a number of seconds; raises InvalidInput where it is none, or 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not found or not float(found[1]):
        raise InvalidInput(f"'{text}' is no time: 90s, 55m, 4h or a number of seconds is expected.")
    return float(found[1]) * UNITS[found[2]]
