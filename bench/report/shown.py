"""What a command shows of what it found: the same for every experiment, so that all end alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportOnMethods(Report):
    """A report on several methods, one of which never costs the others.

    Attributes:
        skipped, failures: methods and metrics that were left out, with the reason.
        failed_trainings: reasons; what needed these models is left out.
    """

    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    failed_trainings: Sequence[str] = ()

    def notes(self) -> list[str]:
        """What was skipped."""
        return [f"skipped {name}: {why}" for name, why in self.skipped.items()]

    def problems(self) -> list[str]:
        """What failed."""
        return [
            *(f"{name} failed: {why}" for name, why in self.failures.items()),
            *(f"a training failed, and what needed its model is left out: {why}" for why in self.failed_trainings),
        ]
