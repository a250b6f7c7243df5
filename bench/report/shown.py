"""What a command shows of what it found: the same for every experiment, so that all end alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Head and lines of a table for people."""


def markdown_cell(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no cell border, one line."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("|", "\\|")


def as_markdown(table: Table) -> str:
    """A table as Markdown."""
    head, cells = table
    first, *others = (f"| {' | '.join(map(markdown_cell, line))} |" for line in (head, *cells))
    return "\n".join([first, "|" + "---|" * len(head), *others]) + "\n"


class Report(ABC):
    """What was found: files in the results folder, and what a command prints."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """What is read first."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Lines below: what was skipped, what was left out, where it lies."""

    def problems(self) -> list[str]:
        """What went wrong; it decides the exit code, and the rest of the report holds."""
        return []
