"""How right every group and operation is, and what gives the bias away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgeon.card import group_name, percent, spread
from surgeon.findings import AVERAGES, PLACES
from surgeon.report.charts.chart import Chart, Grid, add_legend, name_rows
from surgeon.report.svg import AFTER, BEFORE, INK, THIRD, drawing, new_figure, shortened, to_svg

# More groups than this are drawn worst first and cut off; the table has them all.
_GROUPS = 24


def group_chart(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> Chart:
    """Draw the accuracy of every group before and after, with intervals.

    Args:
        before: Audit of the vanilla network.
        after: Audit of the operation.
        name: Its row's name.
    """
    pairs = list(zip(before["groups"], after["groups"], strict=True))
    filled = [pair for pair in pairs if pair[0]["n"]]
    shown = sorted(filled, key=lambda pair: pair[0]["accuracy"])[:_GROUPS]
    shown = [pair for pair in filled if pair in shown]
    with drawing():
        figure, panels = new_figure(0.9 + 0.36 * len(shown))
        panel = panels[0, 0]
        for shift, column, color, marker, label in (
            (0.17, 0, BEFORE, "o", "vanilla"),
            (-0.17, 1, AFTER, "s", name),
        ):
            for place, pair in enumerate(reversed(shown)):
                row = pair[column]
                span = [100 * row["low"], 100 * row["high"]]
                panel.plot(span, [place + shift] * 2, color=color, linewidth=1.5)
                first = label if not place else None
                x = 100 * row["accuracy"]
                panel.plot(x, place + shift, marker, color=color, markersize=5, label=first)
        name_rows(panel, [group_name(pair[0]) for pair in shown])
        panel.set_xlim(-2, 102)
        panel.set_xlabel("accuracy, % (bars: 95 % interval)")
        add_legend(figure, panel)
        svg = to_svg(figure)
    cut = f" The {len(shown)} lowest before of {len(filled)} are drawn." * (shown != filled)
    return Chart(
        "groups",
        "Accuracy by group",
        f"Report rows, before and after, in percent, with Wilson's 95 % intervals.{cut}",
        svg,
        Grid(
            ("group", "n", "vanilla, %", f"{name}, %"),
            [(group_name(old), str(old["n"]), spread(old), spread(new)) for old, new in pairs],
        ),
    )


def result_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw the worst group's accuracy of several results, with intervals."""
    with drawing():
        figure, panels = new_figure(0.9 + 0.3 * len(rows))
        panel = panels[0, 0]
        for place, row in enumerate(reversed(rows)):
            value, span = row["audit"][AVERAGES[0]], row["audit"]["intervals"][AVERAGES[0]]
            if span:
                panel.plot([100 * end for end in span], [place] * 2, color=AFTER, linewidth=1.5)
            if value is not None:
                panel.plot(100 * value, place, "s", color=AFTER, markersize=5)
        name_rows(panel, [row["name"] for row in rows])
        panel.set_xlim(-2, 102)
        panel.set_xlabel("accuracy of the worst group, % (bars: 95 %)")
        svg = to_svg(figure)
    return Chart(
        "worst-group",
        "Accuracy of the worst group",
        "Report rows, in percent, with Wilson's 95 % interval of that group.",
        svg,
        operation_grid(rows),
    )


def leakage_charts(operations: Sequence[Mapping[str, Any]], column: str) -> list[Chart]:
    """Draw what probes read of one bias off each place, for every operation beside chance."""
    chance = 100 * operations[0]["audit"]["biases"][column]["chance"]
    charts = []
    for place in PLACES:
        read = [(row["name"], _leak(row, column, place)) for row in operations]
        read = [(name, kinds) for name, kinds in read if kinds]
        if not read:
            continue
        with drawing():
            figure, panels = new_figure(1.0 + 0.24 * len(read))
            panel = panels[0, 0]
            panel.axvline(chance, color=INK, linestyle=":", linewidth=1, label="chance")
            for kind, marker, color in (("linear", "o", AFTER), ("mlp", "^", THIRD)):
                marks = [
                    (100 * told, position)
                    for position, (_, kinds) in enumerate(reversed(read))
                    if (told := kinds[kind]) is not None
                ]
                label = "MLP probe" if kind == "mlp" else "linear probe"
                face = "none" if kind == "mlp" else color
                if marks:
                    x, y = zip(*marks, strict=True)
                    panel.plot(x, y, marker, color=color, markerfacecolor=face, label=label)
            name_rows(panel, [name for name, _ in read])
            panel.set_xlim(-2, 102)
            panel.set_xlabel(f"'{shortened(column, 16)}' read by a probe, %")
            add_legend(figure, panel)
            svg = to_svg(figure)
        spoken = place.replace("_", " ")
        rows = [(name, percent(k["linear"]), percent(k["mlp"])) for name, k in read]
        charts.append(
            Chart(
                f"leakage-{column}-{place}",
                f"'{column}' read off the {spoken}",
                f"Accuracy of fresh probes on report rows, in percent; chance is {chance:.1f}.",
                svg,
                Grid(("operation", "linear, %", "MLP, %"), rows),
            )
        )
    return charts


def _leak(row: Mapping[str, Any], column: str, place: str) -> Mapping[str, float | None] | None:
    return (row["audit"]["biases"][column]["leakage"] or {}).get(place)


def operation_grid(operations: Iterable[Mapping[str, Any]]) -> Grid:
    """Tabulate the accuracies of every operation."""
    rows = []
    for row in operations:
        audit = row["audit"]
        rows.append(
            (
                row["name"],
                *(percent(audit[key]) for key in AVERAGES),
                percent(row["sparsity"]["gated"]),
                f"{row['seconds']:.1f}",
            )
        )
    heads = ("worst group, %", "balanced, %", "average, %", "sparsity, %", "seconds")
    return Grid(("operation", *heads), rows)
