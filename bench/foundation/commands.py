"""What every command shares: errors become exit codes in one place, names are completed by the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from bench.errors import BenchError

MENDABLE, INTERRUPTED = 2, 130
"""Exit codes."""


class BenchGroup(click.Group):
    """What the user can mend ends with one line and exit code 2; Ctrl-C keeps everything that is finished."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; the one place where errors become exit codes."""
        try:
            return super().invoke(context)
        except BenchError as error:
            click.echo(f"bench: {error}", err=True)
            context.exit(MENDABLE)
        except OSError as error:
            click.echo(f"bench: a file could not be read or written: {error}", err=True)
            context.exit(MENDABLE)
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
