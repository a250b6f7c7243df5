"""Values written as text: on a command line, in an older label."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: str) -> Any:
    """A number, true, false or null as JSON writes them, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
