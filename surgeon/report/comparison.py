"""A comparison of operations: one table, one picture, one file for spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from surgeon.card import percent
from surgeon.findings import AVERAGES
from surgeon.report.terminal import operation_table

_MARKS = {"improved": "+", "worse": "-", "nothing to remove": "0", "no significant change": "="}
_LEGEND = "+ improved, - worse, = no significant change, 0 nothing to remove"


def render_comparison(document: Mapping[str, Any], console: Console) -> None:
    """Print the table of a `comparison.json` document, what failed, and what to ship."""
    operations = document["operations"]
    for column in operations[0]["audit"]["biases"]:
        console.print(_table(operations, column))
        console.print()
    for name, why in document["failed"].items():
        console.print(Text(f"{name} failed: {why}"))
    ship = document["ship"]
    what = ship["name"] if ship["folder"] else "the checkpoint as it is"
    console.print(Text(f"ship: {what} ({ship['why']})", style="bold"))


def write_comparison(document: Mapping[str, Any], folder: Path) -> None:
    """Write `comparison.csv`, every figure of the table, and `comparison.svg`, the picture."""
    rows = [_flat(row) for row in document["operations"]]
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    # Equal tables give equal pictures.
    with matplotlib.rc_context({"svg.hashsalt": "surgeon", "svg.fonttype": "none"}):
        _picture(document).savefig(folder / "comparison.svg", metadata={"Date": None})


def _table(operations: Sequence[Mapping[str, Any]], column: str) -> Table:
    first = operations[0]["audit"]
    names = [*AVERAGES, *(["reweighted_accuracy"] if first["reweighted_accuracy"] else [])]
    heads = ["worst", "bal.", "avg.", "rew."][: len(names)]
    chance = percent(first["biases"][column]["chance"])
    table = operation_table(
        f"report rows, %; leakage of '{column}' from the logits, linear / MLP (chance {chance})",
        *heads,
        "leakage",
        "pru-\nned",
        "s",
        "worst group, points",
    )
    table.padding = 0
    table.columns[-1].no_wrap = False  # where 80 columns are too few, this one folds
    for row in operations:
        audit, verdict = row["audit"], row["verdict"]
        read = audit["biases"][column]["leakage"]["logits"]
        table.add_row(
            row["name"],
            *(percent(audit[name]) for name in names),
            f"{percent(read['linear'])} / {percent(read['mlp'])}",
            percent(row["sparsity"]["gated"]),
            f"{row['seconds']:.0f}",
            _change(verdict),
        )
    table.caption = f"points against vanilla (95 % interval): {_LEGEND}"
    return table


def _change(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None or verdict["worst_group"]["difference"] is None:
        return "-"
    change = {name: 100 * value for name, value in verdict["worst_group"].items()}
    mark = _MARKS[verdict["word"]]
    return f"{change['difference']:+.1f} ({change['low']:.1f} to {change['high']:.1f}) {mark}"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    audit, verdict = row["audit"], row["verdict"] or {}
    flat = {"operation": row["name"]}
    flat |= {name: audit[name] for name in (*AVERAGES, "reweighted_accuracy")}
    for column, bias in audit["biases"].items():
        flat[f"{column}.gap"] = bias["gap"]
        for place, kinds in bias["leakage"].items():
            for kind in ("linear", "mlp"):
                flat[f"{column}.{place}.{kind}"] = kinds and kinds[kind]
    flat |= {f"pruned.{kind}": share for kind, share in row["sparsity"].items()}
    flat |= {"seconds": row["seconds"], "select_loss": row["select_loss"]}
    flat["verdict"] = verdict.get("word")
    for name in ("worst_group", "balanced"):
        change = verdict.get(name) or {}
        flat |= {f"{name}.{end}": change.get(end) for end in ("difference", "low", "high")}
    return flat


def _picture(document: Mapping[str, Any]) -> Figure:
    """Draw worst-group accuracy against the linear leakage of the logits, a panel per bias."""
    operations = document["operations"]
    columns = list(operations[0]["audit"]["biases"])
    figure = Figure(figsize=(7 * len(columns), 5), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        for row in operations:
            audit = row["audit"]
            x, y = audit["biases"][column]["leakage"]["logits"]["linear"], audit[AVERAGES[0]]
            if x is None or y is None:
                continue
            chosen = row["name"] == document["ship"]["name"]
            span = audit["intervals"][AVERAGES[0]]
            if span:
                panel.plot([100 * x] * 2, [100 * end for end in span], color="0.8", zorder=1)
            panel.plot(100 * x, 100 * y, "D" if chosen else "o", color="C1" if chosen else "C0")
            panel.annotate(
                row["name"],
                (100 * x, 100 * y),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=8,
            )
        chance = 100 * operations[0]["audit"]["biases"][column]["chance"]
        panel.axvline(chance, color="0.5", linestyle=":", label="chance")
        panel.margins(x=0.15)
        panel.set_xlabel(f"'{column}' read off the logits by a linear probe, %")
        panel.set_ylabel("accuracy of the worst group, % (bars: 95 %)")
        panel.legend(loc="lower left")
    figure.suptitle("Operations: accuracy against leakage, report rows")
    return figure
