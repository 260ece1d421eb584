"""How a fit went, epoch by epoch and setting by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.card import percent
from surgeon.report.charts.chart import Chart, Grid, add_legend
from surgeon.report.svg import AFTER, MARKERS, SERIES, drawing, new_figure, to_svg

_HISTORY = {
    "temperature": "temperature",
    "task_loss": "task loss, nats",
    "bias_term": "bias term",
    "adversarial_loss": "adversarial loss, nats",
    "select_balanced_accuracy": "balanced accuracy, select rows, %",
    "sparsity": "sparsity, %",
}
_PERCENT = ("select_balanced_accuracy", "sparsity")


def history_chart(history: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw what changed from epoch to epoch; None where nothing did."""
    keys = [
        key
        for key in _HISTORY
        if len({record.get(key) for record in history}) > 1 and all(key in r for r in history)
    ]
    if not keys:
        return None
    epochs = [record["epoch"] for record in history]
    with drawing():
        figure, panels = new_figure(0.4 + 1.1 * len(keys), len(keys), sharex=True)
        for panel, key in zip(panels[:, 0], keys, strict=True):
            scale = 100 if key in _PERCENT else 1
            panel.plot(epochs, [scale * record[key] for record in history], color=AFTER)
            panel.set_title(_HISTORY[key], loc="left")
            panel.locator_params(axis="y", nbins=4)
        panels[-1, 0].set_xlabel("epoch")
        panels[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        svg = to_svg(figure)
    return Chart(
        "search",
        "How the fit went",
        "By epoch: " + "; ".join(_HISTORY[key] for key in keys) + ".",
        svg,
        Grid(
            ("epoch", *(_HISTORY[key] for key in keys)),
            [
                (
                    str(record["epoch"]),
                    *(f"{record[key] * (100 if key in _PERCENT else 1):.4g}" for key in keys),
                )
                for record in history
            ],
        ),
    )


def sweep_chart(sweep: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw accuracy and leakage over the values of a setting, select rows."""
    field = next(iter(sweep[0]))
    values = [f"{record[field]:g}" for record in sweep]
    columns = list(sweep[0]["select"]["biases"])
    accuracy = {
        "worst group": [record["select"]["worst_group_accuracy"] for record in sweep],
        "balanced": [record["select"]["balanced_accuracy"] for record in sweep],
    }
    leaks = {
        f"'{column}'": [
            (record["select"]["biases"][column]["leakage"] or {"logits": {"linear": None}})[
                "logits"
            ]["linear"]
            for record in sweep
        ]
        for column in columns
    }
    with drawing():
        figure, panels = new_figure(4.2, 2, sharex=True)
        for panel, lines, label in (
            (panels[0, 0], accuracy, "accuracy, %"),
            (panels[1, 0], leaks, "read off the logits, %"),
        ):
            for (name, line), color, marker in zip(
                lines.items(), SERIES * 9, MARKERS * 9, strict=False
            ):
                points = [float("nan") if y is None else 100 * y for y in line]
                panel.plot(values, points, marker=marker, color=color, label=name, markersize=4)
            panel.set_title(label, loc="left")
            panel.legend(loc="best")
        panels[1, 0].set_xlabel(field)
        svg = to_svg(figure)
    names = (*accuracy, *(f"{name} read off the logits" for name in leaks), "sparsity")
    return Chart(
        "sweep",
        f"Accuracy and leakage over {field}",
        "Select rows, in percent; a linear probe reads each bias. One setting was chosen, and "
        "read report rows.",
        svg,
        Grid(
            (field, *(f"{name}, %" for name in names)),
            [
                (
                    value,
                    *(percent(line[i]) for line in (*accuracy.values(), *leaks.values())),
                    percent(sweep[i]["sparsity"]["gated"]),
                )
                for i, value in enumerate(values)
            ],
        ),
    )


def sparsity_chart(sweep: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Draw swept masks against magnitude and random ones that are as sparse; None without any."""
    masked = [record for record in sweep if record.get("controls")]
    masked.sort(key=lambda record: record["sparsity"]["gated"])
    if not masked:
        return None
    x = [100 * record["sparsity"]["gated"] for record in masked]
    lines = {"searched": [record["select"]["balanced_accuracy"] for record in masked]}
    for name in masked[0]["controls"]:
        lines[name] = [record["controls"][name] for record in masked]
    with drawing():
        figure, panels = new_figure(2.6)
        panel = panels[0, 0]
        for (name, line), color, marker in zip(lines.items(), SERIES, MARKERS, strict=False):
            panel.plot(x, [100 * y for y in line], marker=marker, color=color, label=name)
        panel.set_xlabel("weights removed, %")
        panel.set_ylabel("balanced accuracy, %")
        add_legend(figure, panel)
        svg = to_svg(figure)
    return Chart(
        "sparsity",
        "The mask against others that are as sparse",
        "Select rows, in percent; magnitude and random masks remove as much from every layer.",
        svg,
        Grid(
            ("weights removed, %", *(f"{name}, %" for name in lines)),
            [
                (
                    percent(record["sparsity"]["gated"]),
                    *(percent(line[i]) for line in lines.values()),
                )
                for i, record in enumerate(masked)
            ],
        ),
    )
