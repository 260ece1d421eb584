"""Figures and tables in Markdown: the mean and the deviation of what was measured, no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any


def spread(values: Sequence[float | None]) -> str:
    """Show mean and standard deviation in percent; a dash where a figure is missing.

    Args:
        values: Fractions in [0, 1], one for every seed.
    """
    known = [100 * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    mean = round(fmean(known), 1) + 0.0  # no minus before a zero
    return f"{mean:.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def leak(kinds: Sequence[Mapping[str, float | None] | None]) -> str:
    """Show what the linear and the MLP probe read at one place.

    Args:
        kinds: `linear` and `mlp` for every seed, None where there is no such place.
    """
    if not all(kinds):
        return "-"
    return " / ".join(spread([kind[name] for kind in kinds if kind]) for name in ("linear", "mlp"))


def difference(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Show the mean of worst-group differences, and of the ends of their intervals, in points.

    Args:
        verdicts: One for every seed, as a result holds it.
    """
    spans = [verdict["worst_group"] for verdict in verdicts]
    if not spans or any(value is None for span in spans for value in span.values()):
        return "-"
    means = [
        round(100 * fmean(span[name] for span in spans), 1) + 0.0
        for name in ("difference", "low", "high")
    ]
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*means)


def table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are text, bars and all."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), line("---" for _ in heads), *map(line, body)])
