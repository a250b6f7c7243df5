"""Progress on a terminal: bars with the time left, plain lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from bench.foundation.progress import Progress

LINE_SECONDS = 15.0


class BarProgress(Progress):
    """Bars for a person who watches."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.tasks = {}  # type: ignore[var-annotated]

    def __enter__(self) -> BarProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def advance(self, task: str, done: int, total: int) -> None:
        """Move the bar of ``task``."""
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(task, total=total)
        self.bars.update(self.tasks[task], completed=done, total=total)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.bars.console.print(escape(text), highlight=False)


class LineProgress(Progress):
    """A line now and then, for a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started: dict[str, tuple[float, int]] = {}
        self.printed: dict[str, float] = {}

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, task: str, done: int, total: int) -> None:
        """A line every few seconds and at the end, with the time left."""
        now = time.monotonic()
        began, first = self.started.setdefault(task, (now, done))
        due = now - self.printed.setdefault(task, now) >= LINE_SECONDS
        if not due and done < total:
            return
        self.printed[task] = now
        rate = (done - first) / (now - began) if now > began else 0.0
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        self.say(f"{task}: {done} of {total}{left}")
        if done >= total:
            self.started.pop(task, None)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)


def progress_on(console: Console) -> BarProgress | LineProgress:
    """Bars on a terminal, lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


WIDE = 10_000
"""Columns of a terminal on which every table fits."""


def console_here() -> Console:
    """The terminal, or a wide page where the output is none."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def table(head: Sequence[str], lines: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table; cells are text, never markup, and wrap rather than lose a letter."""
    made = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in head:
        made.add_column(escape(name), overflow="fold")
    for line in lines:
        made.add_row(*(escape(cell) for cell in line))
    return made


def print_table(
    console: Console, head: Sequence[str], lines: Sequence[Sequence[str]], *, title: str | None = None
) -> None:
    """A table; where it is too wide, one for each value of its first column, if lines share one, without empty columns.

    Any other wraps its cells.
    """
    whole = table(head, lines, title=title)
    firsts = list(dict.fromkeys(line[0] for line in lines))
    needed = console.measure(whole, options=console.options.update_width(WIDE)).maximum
    if title or needed <= console.width or len(firsts) == len(lines):
        console.print(whole)
        return
    for first in firsts:
        own = [line for line in lines if line[0] == first]
        kept = [column for column in range(1, len(head)) if any(line[column] for line in own)]
        rest = [[line[column] for column in kept] for line in own]
        console.print(table([head[column] for column in kept], rest, title=escape(f"{head[0]}: {first}")))


def print_line(text: str) -> None:
    """Text as it is, in one line."""
    console_here().print(escape(text), highlight=False, soft_wrap=True)
