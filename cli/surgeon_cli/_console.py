"""Results go to stdout, everything else to stderr; 80 columns and no colour when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

_WIDTH = 80


def result_console() -> Console:
    """Return the console for tables on stdout."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


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
        parts = [
            f"epoch {record['epoch']}/{record['epochs']}",
            f"temperature {record['temperature']:.3g}",
            f"task loss {record['task_loss']:.3f}",
            f"mutual information {record['mutual_information']:.3f}",
            f"select {100 * record['select_balanced_accuracy']:.1f} %",
            f"sparsity {100 * record['sparsity']:.1f} %",
            f"{record['seconds_left']:.0f} s left",
        ]
        line = ", ".join(parts)
        if self._live:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False
