"""Map a user's mistake to one line on stderr and an exit code; everything else keeps its trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")

_INTERRUPTED = 3


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that `SurgeonError` and Ctrl-C end it without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted: no result was written; run the command again", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            from surgeon import SurgeonError

            if not isinstance(error, SurgeonError):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None

    return wrapped
