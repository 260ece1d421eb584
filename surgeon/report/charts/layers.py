"""What the masks leave of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.card import percent
from surgeon.report.charts.chart import Chart, Grid, add_legend, name_rows
from surgeon.report.svg import AFTER, INK, LINE, THIRD, drawing, new_figure, to_svg

# More layers than this are drawn without their names.
_NAMED_LAYERS = 60


def layer_charts(layers: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draw what is left of every layer, in weights and in proportion, with dead units."""
    names = [layer["name"] for layer in layers]
    kept = [layer["kept"] for layer in layers]
    gone = [layer["weights"] - layer["kept"] for layer in layers]
    shares = [100 * layer["sparsity"] for layer in layers]
    dead = [100 * layer["dead_units"] / layer["units"] for layer in layers]
    named = len(layers) <= _NAMED_LAYERS
    height = 0.9 + (0.19 if named else 0.06) * len(layers)
    grid = Grid(
        ("layer", "kind", "weights", "kept", "removed, %", "units", "dead units"),
        [
            (
                *(layer["name"], layer["kind"], f"{layer['weights']:,}", f"{layer['kept']:,}"),
                *(percent(layer["sparsity"]), str(layer["units"]), str(layer["dead_units"])),
            )
            for layer in layers
        ],
    )
    places = range(len(layers) - 1, -1, -1)
    with drawing():
        figure, panels = new_figure(min(height, 14))
        panel = panels[0, 0]
        panel.barh(places, kept, color=AFTER, label="kept")
        panel.barh(
            places, gone, left=kept, color=LINE, edgecolor=INK, linewidth=0.3, label="removed"
        )
        name_rows(panel, names if named else None)
        panel.set_xlabel("weights")
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        panel.locator_params(axis="x", nbins=4)
        add_legend(figure, panel)
        absolute = to_svg(figure)
        figure, panels = new_figure(min(height, 14))
        panel = panels[0, 0]
        panel.barh(places, shares, color=AFTER, label="weights removed")
        panel.plot(dead, places, "D", color=THIRD, markersize=3.5, label="dead units")
        name_rows(panel, names if named else None)
        panel.set_xlim(-2, 102)
        panel.set_xlabel("share of the layer, %")
        add_legend(figure, panel)
        relative = to_svg(figure)
    order = "" if named else " First layer on top; the table has their names."
    return [
        Chart(
            "layers",
            "Weights of each layer",
            f"Number of weights that the masks keep and remove.{order}",
            absolute,
            grid,
        ),
        Chart(
            "layers-share",
            "Share of each layer that is removed",
            "Percent of the layer's weights; a unit is dead when none of its weights is left, or "
            f"its gate is closed.{order}",
            relative,
            grid,
        ),
    ]
