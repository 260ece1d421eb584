"""Several finished results side by side, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.card import LIMITS, percent
from surgeon.errors import ArtefactError
from surgeon.findings import AVERAGES
from surgeon.report.charts import Grid, leakage_charts, result_chart
from surgeon.report.html import read_json, render
from surgeon.whole import replacing


def write_several(folders: Sequence[Path], out: Path) -> None:
    """Write a page with a row for each of some results.

    Args:
        folders: That operations have written.
        out: File to write.

    Raises:
        ArtefactError: A folder holds no measurements, or biases have other names.
    """
    reports = {str(folder): read_json(folder / "report.json") for folder in folders}
    rows = [{**r["operations"][-1], "name": name} for name, r in reports.items()]
    columns = [tuple(row["audit"]["biases"]) for row in rows]
    if len(set(columns)) > 1:
        raise ArtefactError(
            f"{folders[0]}: found biases {', '.join(columns[0])}, elsewhere "
            f"{', '.join(next(c for c in columns if c != columns[0]))}; lay results side by side "
            "that were measured alike"
        )
    charts = [result_chart(rows)]
    for column in columns[0]:
        charts += leakage_charts(rows, column)
    html = render(
        "several.html",
        grid=_grid(reports),
        charts=charts,
        notes=_notes(reports),
        limits=LIMITS,
    )
    with replacing(out) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _grid(reports: Mapping[str, Mapping[str, Any]]) -> Grid:
    first = next(iter(reports.values()))["operations"][-1]["audit"]
    heads = ["result", "operation", "verdict", "worst group, %", "balanced, %", "average, %"]
    heads += [f"'{column}' off the logits, linear / MLP, %" for column in first["biases"]]
    rows = []
    for name, report in reports.items():
        own = report["operations"][-1]
        leaks = [(bias["leakage"] or {}).get("logits") for bias in own["audit"]["biases"].values()]
        rows.append(
            (
                *(name, own["name"], report["verdict"]["word"]),
                *(percent(own["audit"][key]) for key in AVERAGES),
                *(
                    f"{percent(kinds['linear'])} / {percent(kinds['mlp'])}" if kinds else "-"
                    for kinds in leaks
                ),
                *(percent(own["sparsity"]["gated"]), f"{own['seconds']:.1f}"),
            )
        )
    return Grid((*heads, "sparsity, %", "seconds"), rows)


def _notes(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where results cannot be compared."""
    notes = []
    for key, what in (("base", "checkpoints"), ("data", "numbers of rows")):
        if len({str(sorted(report[key].items())) for report in reports.values()}) > 1:
            notes.append(f"these results are of different {what}, so their figures do not compare")
    return notes
