"""How long work reports: stages call, the caller draws. The base class is silent."""

from __future__ import annotations


class Progress:
    """Where a run is. Subclass it to draw."""

    def advance(self, task: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``task`` are done."""

    def say(self, text: str) -> None:
        """Something worth a line: what was reused, set aside, skipped or failed, and why."""
