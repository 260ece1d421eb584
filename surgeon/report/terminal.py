"""The tables and the verdict as a terminal shows them, 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from surgeon.card import group_name, percent, points, spread
from surgeon.findings import AVERAGES, CLAIM_ROWS, PLACES
from surgeon.table import list_names

_GROUPS_SHOWN = 12
_FLAGGED = 30


def render_report(
    report: Mapping[str, Any], console: Console, *, sweep: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Print the tables of a `report.json` document, those of a sweep among them, verdict last."""
    operations = report["operations"]
    before, after = operations[0], operations[-1]
    _print(console, _group_table(before["audit"], after["audit"], after["name"]))
    _print(console, _accuracy_table(operations))
    for column, row in before["audit"]["biases"].items():
        if row["leakage"] is not None:
            _print(console, _leakage_table(column, operations), *_leakage_notes(column, operations))
    if sweep:
        _print(console, _sweep_table(sweep))
    for note in report["notes"]:
        console.print(Text(f"note: {note}"))
    _print(console, *_verdict_lines(report))


def render_audit(audit: Mapping[str, Any], console: Console) -> None:
    """Print an audit's JSON document."""
    _print(console, _group_table(audit, None, ""))
    row = {"name": "this checkpoint", "audit": audit, "sparsity": {"gated": None}, "seconds": None}
    _print(console, _accuracy_table([row]))
    for column, bias in audit["biases"].items():
        if bias["leakage"] is not None:
            _print(console, _leakage_table(column, [row]), *_leakage_notes(column, [row]))


def render_inspection(document: Mapping[str, Any], console: Console) -> None:
    """Print what `surgeon inspect` found."""
    for name, value in document.items():
        if value is not None and not isinstance(value, list | dict):
            console.print(Text(f"{name}: {value}"))
    if document["label_names"]:
        console.print(Text(f"label_names: {list_names(document['label_names'])}"))
    console.print(Text(f"preprocessing: {_pairs(document['preprocessing'])}"))
    console.print()
    layers = new_table("layers a mask may touch", "layer", "kind", "weights", "units")
    for layer in document["layers"]:
        layers.add_row(*(str(layer[k]) for k in ("name", "kind", "weights", "units")))
    _print(console, layers)
    if "groups" in document:
        groups = new_table("label file", "group", "n")
        for row in document["groups"]:
            groups.add_row(group_name(row), str(row["n"]))
        _print(console, groups)
    for note in document.get("notes", []):
        console.print(Text(f"note: {note}"))


def _print(console: Console, *items: RenderableType) -> None:
    for item in items:
        console.print(item)
    console.print()


def new_table(title: str, *columns: str) -> Table:
    """Start a table whose first column is text and the others are figures, which never fold."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def operation_table(title: str, *columns: str) -> Table:
    """Start a table with one row per operation, whose name never folds."""
    table = new_table(title, "operation", *columns)
    table.columns[0].no_wrap = True
    return table


def _group_table(before: Mapping[str, Any], after: Mapping[str, Any] | None, name: str) -> Table:
    """Show every group, or the worst ones when there are many."""
    columns = ["group", "n", "accuracy % (95 % interval)"]
    if after:
        columns[2:] = ["vanilla % (95 % interval)", f"{name} %"]
    table = new_table("accuracy by group, report rows", *columns)
    rows = list(zip(before["groups"], (after or before)["groups"], strict=True))
    filled = [pair for pair in rows if pair[0]["n"]]
    shown = filled
    if len(filled) > _GROUPS_SHOWN:
        shown = sorted(filled, key=lambda pair: pair[0]["accuracy"])[:_GROUPS_SHOWN]
    for old, new in shown:
        flag = "!" if old["n"] < _FLAGGED else ""
        cells = [group_name(old), f"{old['n']}{flag}", spread(old)]
        table.add_row(*cells, *([spread(new)] if after else []))
    remarks = []
    if len(shown) < len(filled):
        remarks.append(f"the {len(shown)} worst of {len(filled)} groups; all are in groups.csv")
    if len(filled) < len(rows):
        remarks.append(f"{len(rows) - len(filled)} groups have no report rows")
    if any(old["n"] < _FLAGGED for old, _ in shown):
        remarks.append(f"! fewer than {_FLAGGED} rows")
    table.caption = "; ".join(remarks) or None
    return table


def _accuracy_table(operations: Sequence[Mapping[str, Any]]) -> Table:
    reweighted = any(row["audit"]["reweighted_accuracy"] is not None for row in operations)
    heads = ["worst\ngroup", "balanced", "average", *(["re-\nweighted"] if reweighted else [])]
    names = (*AVERAGES, "reweighted_accuracy") if reweighted else AVERAGES
    # With several biases each has its gap beside its leakage.
    biases = list(operations[0]["audit"]["biases"])
    gap = biases if len(biases) == 1 else []
    table = operation_table("accuracy, %", *heads, *["gap" for _ in gap], "sparsity", "seconds")
    for row in operations:
        audit = row["audit"]
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.add_row(
            row["name"],
            *(percent(audit[name]) for name in names),
            *(percent(audit["biases"][column]["gap"]) for column in gap),
            percent(row["sparsity"]["gated"]),
            seconds,
        )
    return table


def _leakage_table(column: str, operations: Sequence[Mapping[str, Any]]) -> Table:
    row = operations[0]["audit"]["biases"][column]
    title = f"leakage of '{column}', linear / MLP probe, % (chance {percent(row['chance'])})"
    several = len(operations[0]["audit"]["biases"]) > 1
    gap = ["gap"] if several else []
    table = operation_table(title, *gap, *(place.replace("_", " ") for place in PLACES))
    for operation in operations:
        bias = operation["audit"]["biases"][column]
        cells = [percent(bias["gap"])] if several else []
        for place in PLACES:
            kinds = bias["leakage"][place]
            cells.append("-" if kinds is None else _kinds(kinds))
        table.add_row(operation["name"], *cells)
    return table


def _sweep_table(sweep: Sequence[Mapping[str, Any]]) -> Table:
    """Show what each setting pays in accuracy, and what leakage it gets for that."""
    field = next(iter(sweep[0]))
    columns = list(sweep[0]["select"]["biases"])
    table = new_table(
        f"{field}: accuracy and leakage of the logits (linear), %, select rows",
        field,
        "worst\ngroup",
        "balanced",
        "bias\nterm",
        *(f"leakage\n{column}" for column in columns),
        "sparsity",
    )
    for record in sweep:
        seen = record["select"]
        leaks = [seen["biases"][column]["leakage"] for column in columns]
        table.add_row(
            f"{record[field]:g}" + ("" if record["masked"] else " (no mask)"),
            *(percent(seen[name]) for name in AVERAGES[:2]),
            f"{record['bias_term']:.3f}",
            *("-" if leak is None else percent(leak["logits"]["linear"]) for leak in leaks),
            percent(record["sparsity"]["gated"]),
        )
    return table


def _kinds(kinds: Mapping[str, float | None]) -> str:
    return f"{percent(kinds['linear'])} / {percent(kinds['mlp'])}"


def _leakage_notes(column: str, operations: Sequence[Mapping[str, Any]]) -> list[Text]:
    row = operations[-1]["audit"]["biases"][column]
    lines = []
    spans = row["leakage_intervals"]["logits"] if row["leakage_intervals"] else None
    if spans and spans["linear"]:
        low, high = spans["linear"]
        lines.append(
            f"n = {row['n']}; logits of '{operations[-1]['name']}', linear: "
            f"{percent(low)} to {percent(high)} (95 %)"
        )
    if row["n"] < CLAIM_ROWS:
        lines.append(f"fewer than {CLAIM_ROWS} report rows: leakage is shown, and claims nothing")
    if row["untrusted"]:
        lines.append(f"missed a planted signal: {', '.join(row['untrusted'])}")
    return [Text(line) for line in lines]


def _verdict_lines(report: Mapping[str, Any]) -> Iterable[Text]:
    verdict = report["verdict"]
    for name, label in (("worst_group", "worst group"), ("balanced", "balanced")):
        change = verdict[name]
        if change["difference"] is not None:
            yield Text(f"{label}: {points(change)} against {verdict['against']}")
    yield Text(f"verdict: {verdict['word']} ({verdict['reason']})", style="bold")


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
