"""What an experiment goes on without: methods and metrics that cannot run here, or that failed. None stops the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from bench.errors import ResultsFolderError, Unavailable, reason_of
from bench.foundation.progress import Progress


@runtime_checkable
class Keeper(Protocol):
    """A results folder, as far as failures go: ``Workspace`` is one."""

    @property
    def progress(self) -> Progress:
        """Told of each."""
        ...

    def keep_failure(self, name: str, error: BaseException) -> str:
        """Keep why ``name`` failed; returns where."""
        ...


@dataclass(frozen=True)
class LeftOut:
    """Methods or metrics by their names in tables, with the reason.

    Attributes:
        workspace: told of each; it keeps the tracebacks.
        ahead: whether nothing is to be written: a plan keeps no tracebacks.
        skipped: cannot run here.
        failed: raised, or returned something else than they promised.
    """

    workspace: Keeper
    ahead: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def alone(self, name: str, record: str) -> Iterator[None]:
        """Within it, whatever is raised costs ``name`` alone; its traceback is kept as ``record``."""
        try:
            yield
        except ResultsFolderError:
            raise
        except Unavailable as error:
            self.skipped[name] = str(error)
            self.workspace.progress.say(f"skipped {name}: {error}")
        except (Exception, SystemExit) as error:
            kept = "" if self.ahead else f" (traceback in {self.workspace.keep_failure(record, error)})"
            self.failed[name] = reason_of(error) + kept
            self.workspace.progress.say(f"failed {name}: {self.failed[name]}")
