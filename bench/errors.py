"""What can go wrong, in one tree. Never a traceback for what a user can mend: the command says it in a line, and exits.

The exit code is 2 where nothing was done, 1 where a part failed and the rest is written, 75 where the same command goes
on with what is not finished.

BenchError
├── UnknownName          a study, method, metric or setting that does not exist
├── InvalidInput         a value out of range: K, --queries, a setting
│   └── UnknownWord      a prompt with words that the text encoder does not know
├── ResultsFolderError   the results folder is a file, read-only, or of another study
│   └── DiskFull         it is full: the same command goes on once there is space
├── DamagedArtifact      a stored file is truncated or fails its digest (the ledger rebuilds it)
├── Unavailable          a method lacks what it needs on this machine: a package, weights
├── PluginFailed         a plugin raised, or returned something else than it promised
│   ├── MethodFailed     an attribution method
│   └── MetricFailed     a metric, or its observation
├── TrainingFailed       a retraining produced a non-finite loss
├── EngineStopped        a cluster's workers ended before all was done: the same command goes on
└── PartlyFailed         a part of what was asked for failed; the rest is there
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NOTHING_DONE, PARTLY_DONE, NOT_FINISHED = 2, 1, 75
"""Exit codes beside 0."""


class BenchError(Exception):
    """Anything that the user can mend; its text says what was tried, what came, what was expected, how to mend it."""

    exit_code = NOTHING_DONE


class UnknownName(BenchError):
    """A name that is not registered; the message suggests the nearest and lists all."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        super().__init__(f"There is no {kind} '{shown}'.{meant} Known: {', '.join(names) or 'none'}.{hint}")


class InvalidInput(BenchError):
    """A value out of its range."""


class UnknownWord(InvalidInput):
    """A prompt holds words outside the text encoder's vocabulary."""


class ResultsFolderError(BenchError):
    """The results folder cannot be used."""


class DiskFull(ResultsFolderError):
    """The results folder cannot be written any more; what is finished is kept."""

    exit_code = NOT_FINISHED


class DamagedArtifact(BenchError):
    """A stored file is not what was written."""


class Unavailable(BenchError):
    """A method lacks what it needs on this machine; it is skipped, and the others go on."""


class PluginFailed(BenchError):
    """A method, metric or observation raised, or returned something else than it promised."""

    exit_code = PARTLY_DONE


class MethodFailed(PluginFailed):
    """An attribution method raised, or broke the contract of scores."""


class MetricFailed(PluginFailed):
    """A metric or its observation raised, or returned something else than a number."""


class TrainingFailed(BenchError):
    """A training diverged."""

    exit_code = PARTLY_DONE


class EngineStopped(BenchError):
    """The workers ended, or their time did, before all was done."""

    exit_code = NOT_FINISHED


class PartlyFailed(BenchError):
    """A part failed and the rest is written: a method that raised, a published value that cannot be made again."""

    exit_code = PARTLY_DONE


def cause_of(error: BaseException) -> BaseException:
    """What a plugin raised, where ``error`` tells of that; else ``error`` itself."""
    return error.__cause__ if isinstance(error, PluginFailed) and error.__cause__ else error


def reason_of(error: BaseException) -> str:
    """What to say of ``error`` in a row or a line: its text, with its kind where it is not one of ours."""
    return str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
