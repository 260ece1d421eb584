"""Results go to stdout, everything else to stderr; 80 columns and no colour when piped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

_WIDTH = 80
# Each method's records hold some of these.
_SHOWN: dict[str, Callable[[float], str]] = {
    "temperature": lambda x: f"T {x:.2g}",
    "task_loss": lambda x: f"loss {x:.2f}",
    "bias_term": lambda x: f"bias {x:.2f}",
    "select_balanced_accuracy": lambda x: f"select {100 * x:.1f} %",
    "sparsity": lambda x: f"pruned {100 * x:.1f} %",
    "seconds_left": lambda x: f"{x:.0f} s left",
}


def result_console() -> Console:
    """Return the console for tables on stdout."""
    width = None if sys.stdout.isatty() else _WIDTH
    # Names from a label file are text, brackets and colons included.
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout and nothing else."""
    print(json.dumps(document, sort_keys=True, allow_nan=False, ensure_ascii=False))


class Progress:
    """Show stages and epochs on stderr: one rewritten line on a terminal, else plain lines."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._open = False

    def stage(self, text: str) -> None:
        """Announce a stage."""
        if not self._quiet:
            self._end_line()
            print(text, file=sys.stderr, flush=True)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show one epoch."""
        if self._quiet:
            return
        shown = {name: show(record[name]) for name, show in _SHOWN.items() if name in record}
        line = ", ".join([f"epoch {record['epoch']}/{record['epochs']}", *shown.values()])
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap
            print(f"\r\033[K{line[:width]}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False
