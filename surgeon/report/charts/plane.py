"""Features in the plane, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib import colormaps

from surgeon.report.charts.chart import Chart, Grid
from surgeon.report.svg import MARKERS, SERIES, drawing, new_figure, to_svg, told_apart

# More values than this have no legend.
_NAMED_VALUES = 24


def feature_chart(features: Mapping[str, Any], column: str | None = None) -> Chart:
    """Draw features before and after in the plane, marked by a bias, or else by the target."""
    names = features["target"] if column is None else features["bias"][column]
    values = sorted(dict.fromkeys(names))
    marks = _marks(len(values))
    sides = {"before": "bottleneck before", "after": "what the head is given after"}
    short = told_apart(values, 22)
    across = 3 if max(map(len, short)) < 9 else 2
    named = len(values) <= _NAMED_VALUES
    lines = -(-len(values) // across) if named else 0
    with drawing():
        figure, panels = new_figure(2.4 + 0.2 * lines, columns=2)
        for panel, (side, title) in zip(panels[0], sides.items(), strict=True):
            points = features[side]["points"]
            for value, label, (color, marker) in zip(values, short, marks, strict=True):
                own = [p for p, name in zip(points, names, strict=True) if name == value]
                x, y = zip(*own, strict=True)
                panel.plot(x, y, linestyle="", marker=marker, color=color, label=label,
                           markersize=3.5, alpha=0.75, markeredgewidth=0)  # fmt: skip
            panel.set_title(title.rpartition(" ")[2], loc="left")
            panel.set_xticks([])
            panel.set_yticks([])
            shares = [100 * share for share in features[side]["shares"]]
            panel.set_xlabel(f"{shares[0]:.0f} % of variance")
            panel.set_ylabel(f"{shares[1]:.0f} %")
        if named:
            handles, labels = panels[0, 0].get_legend_handles_labels()
            across = min(across, len(labels))
            figure.legend(handles, labels, loc="outside lower center", ncols=across)
        svg = to_svg(figure)
    what = "target" if column is None else f"bias '{column}'"
    rows = []
    for value in values:
        own = [i for i, name in enumerate(names) if name == value]
        cells = []
        for side in sides:
            for axis in (0, 1):
                line = [features[side]["points"][i][axis] for i in own]
                cells.append(f"{fmean(line):.2f} ± {stdev(line) if len(line) > 1 else 0:.2f}")
        rows.append((value, str(len(own)), *cells))
    heads = [f"{side}, {axis}" for side in sides for axis in ("first", "second")]
    return Chart(
        "features" if column is None else f"features-{column}",
        f"Features by {what}",
        f"The {len(names)} report rows shown, along their two directions of greatest variance: "
        f"the {sides['before']}, and {sides['after']}; each in units of its own deviation."
        + " Numbers are the table's lines, from 0 on."
        * (not named),
        svg,
        Grid((what, "n", *heads), rows),
    )


def _marks(count: int) -> Sequence[tuple[Any, str]]:
    """Return a colour and a marker for each of some values; numbers where there are many."""
    if count <= len(SERIES):
        return list(zip(SERIES, MARKERS, strict=True))[:count]
    colors = colormaps["viridis"]
    return [(colors(i / (count - 1)), f"${i}$") for i in range(count)]
