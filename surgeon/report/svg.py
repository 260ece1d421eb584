"""Pictures that read well on paper, in the dark and without colour vision: SVG by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Inches; a phone is as wide.
WIDTH = 4.0
INK, LINE = "#1b1b1d", "#c9cacf"
# Of Okabe and Ito, told apart with any colour vision, and legible on white and on black.
BEFORE, AFTER, THIRD = "#7a7a80", "#0072b2", "#d55e00"
SERIES = (AFTER, THIRD, "#009e73", "#cc79a7", "#7a7a80", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_DARK = {INK: "#ececef", LINE: "#4a4b50", AFTER: "#5bb0e6"}
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "hatch.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "ytick.color": INK,
    "ytick.labelsize": 9,
    # Equal figures give equal files, and text stays text.
    "svg.hashsalt": "surgeon",
    "svg.fonttype": "none",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the house's style."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, Any]:
    """Start a figure and its panels, in an array of rows and columns.

    Args:
        height: Inches.
        rows: Of panels.
        columns: Of panels.
        **shared: `sharex`, `sharey`, as matplotlib has them.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG; ink and lines turn light where the reader prefers dark."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in _DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    # Any sans serif of the reader's.
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", text)
    return re.sub(r"(<svg[^>]*>)", lambda m: m[1] + style, text, count=1)


def told_apart(names: Sequence[str], most: int = 30) -> list[str]:
    """Shorten labels, beginning with the words that all of them share at either end.

    Args:
        names: Labels; words end at a dot, a comma, a slash or a space.
        most: Characters of each.
    """
    if len(names) < 2 or max(map(len, names)) <= most:
        return [shortened(name, most) for name in names]
    words = [re.split(r"(?<=[.,/ ])", name) for name in names]
    front, back = _shared(words), _shared([own[::-1] for own in words])
    cut = []
    for own in words:
        last = max(front, len(own) - back)
        inner = "".join(own[front:last]).rstrip(".,/ ")
        cut.append(shortened("…" * bool(front) + inner + "…" * bool(back), most))
    return cut


def _shared(words: Sequence[Sequence[str]]) -> int:
    """Count the words that all begin with."""
    count = 0
    for together in zip(*words, strict=False):
        if len(set(together)) > 1:
            break
        count += 1
    return count


def shortened(text: str, most: int = 30) -> str:
    """Cut a label in the middle where it is longer than some characters."""
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"
