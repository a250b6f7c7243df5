"""What every command shares: errors become exit codes in one place, names are completed by the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from bench.errors import BenchError, InvalidInput
from bench.foundation.texts import parsed

INTERRUPTED = 130
"""Exit code of Ctrl-C; those of errors are theirs."""


class BenchGroup(click.Group):
    """What the user can mend ends with one line and exit code 2; Ctrl-C keeps everything that is finished."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; the one place where errors become exit codes."""
        try:
            return super().invoke(context)
        except BenchError as error:
            click.echo(f"bench: {error}", err=True)
            context.exit(error.exit_code)
        except OSError as error:
            click.echo(f"bench: a file could not be read or written: {error}", err=True)
            context.exit(BenchError.exit_code)
        except KeyboardInterrupt:
            click.echo("bench: interrupted; what is finished is kept. Run the same command to go on.", err=True)
            context.exit(INTERRUPTED)


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
