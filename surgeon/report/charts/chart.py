"""A chart: a picture, its reading, and the table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from surgeon.report.svg import told_apart


@dataclass(frozen=True)
class Grid:
    """A table as text."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A picture with its title, its reading, and the table behind it."""

    name: str
    """Of its file, without the ending."""
    title: str
    note: str
    """What the axes and marks are."""
    svg: str
    grid: Grid

    @property
    def file_name(self) -> str:
        """The name as a file can bear it."""
        stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)
        return f"{stem}.svg"


def name_rows(panel: Any, names: Sequence[str] | None) -> None:
    """Name the rows of a panel from the top down; None leaves them without names."""
    panel.grid(visible=False, axis="y")
    if names is None:
        panel.set_yticks([])
        return
    panel.set_yticks(range(len(names)), told_apart(names)[::-1])
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(-0.6, len(names) - 0.4)


def add_legend(figure: Figure, panel: Any) -> None:
    """Put the legend of a panel above it."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
