"""What every command shares: errors become exit codes in one place, names are completed by the shell."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from bench.errors import NOT_FINISHED, NOTHING_DONE, PARTLY_DONE, BenchError, InvalidInput, reason_of
from bench.foundation.texts import parsed, seconds

EXIT_CODES = (
    "Exit codes: 0 all done; 1 something failed, the rest is written; 2 wrong usage, nothing was done; 75 not finished "
    "(Ctrl-C, SIGTERM, a full disk, --for is over): the same command goes on from what is kept."
)
DEBUG = "bench.debug"


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends as Ctrl-C does, with a checkpoint."""


class BenchGroup(click.Group):
    """Whatever goes wrong ends with one line and one of EXIT_CODES; what is finished is kept."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params.append(_debug_option())

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Note --debug before anything is done that may go wrong."""
        context.meta[DEBUG] = "--debug" in args or context.meta.get(DEBUG, False)
        return super().parse_args(context, args)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Every command takes --debug."""
        if not isinstance(cmd, BenchGroup):  # a group of ours has it
            cmd.params.append(_debug_option())
        super().add_command(cmd, name)

    def main(self, *arguments: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """As click's, but for a Ctrl-C just before or after the command: it is an interruption, not a failure."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*arguments, standalone_mode=False, **named)
        try:
            code = run(*arguments, standalone_mode=False, **named)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            text, code = _ending(KeyboardInterrupt())
            click.echo(f"bench: {text}", err=True)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; the one place where errors become exit codes."""
        with _terminated_as_interrupted(), warnings.catch_warnings():
            warnings.showwarning = _in_a_line(warnings.showwarning)
            try:
                return super().invoke(context)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except (Exception, KeyboardInterrupt) as error:
                text, code = _ending(error)
                if context.find_root().meta.get(DEBUG):
                    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
                click.echo("bench: " + " ".join(text.split()), err=True)
                context.exit(code)


def _ending(error: BaseException) -> tuple[str, int]:
    """What to say of ``error``, and the exit code."""
    if isinstance(error, BenchError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return f"a file could not be read or written: {error}", NOTHING_DONE
    if isinstance(error, KeyboardInterrupt):
        how = "asked to end (SIGTERM)" if isinstance(error, Terminated) else "interrupted"
        return f"{how}; what is finished is kept. Run the same command to go on.", NOT_FINISHED
    if isinstance(error, MemoryError):
        return "there is not enough memory; give fewer --workers, or smaller numbers.", NOT_FINISHED
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    return f"{reason_of(error)} ({place}). This is a fault of bench; --debug shows the traceback.", PARTLY_DONE


def _debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of what goes wrong.")


def _in_a_line(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Warnings of ours in one line, others as they were."""

    def show(message: Warning | str, category: type[Warning], *others: Any, **named: Any) -> None:
        if category.__module__.startswith("bench."):
            click.echo(f"bench: {message}", err=True)
        else:
            otherwise(message, category, *others, **named)

    return show


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within it, SIGTERM raises Terminated, once: whoever asks twice does not want to wait for a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Named(click.ParamType[str]):
    """A name that the shell can complete; the command says what is wrong with it.

    Args:
        name: for help texts.
        known: gives all names.
    """

    def __init__(self, name: str, known: Callable[[], Iterable[str]]) -> None:
        self.name, self.known = name, known

    def shell_complete(self, context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Every known name that begins so."""
        return [CompletionItem(name) for name in self.known() if name.startswith(incomplete)]


class Assigned(NamedTuple):
    """NAME=TEXT of a command line."""

    name: str
    text: str

    @property
    def value(self) -> Any:
        """The text as ``parsed``."""
        return parsed(self.text)

    @property
    def values(self) -> list[Any]:
        """Those of a list with commas."""
        return [parsed(each) for each in self.text.split(",")]


class Assignment(click.ParamType[Assigned]):
    """An option's NAME=TEXT.

    Args:
        form: for messages, such as "--set METHOD.SETTING=VALUE".
    """

    def __init__(self, form: str) -> None:
        self.name = self.form = form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Assigned:
        """Its parts; raises InvalidInput where it is not of the form."""
        if isinstance(value, Assigned):
            return value
        name, equals, text = value.partition("=")
        if not equals or not text:
            raise InvalidInput(f"'{value}' is not of the form {self.form}.")
        return Assigned(name, text)


class Duration(click.ParamType[float]):
    """A time such as 55m; its value is in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; raises InvalidInput where it is no time."""
        return value if isinstance(value, float) else seconds(value)
