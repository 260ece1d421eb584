"""What a discovery found, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from surgeon.card import percent
from surgeon.report.terminal import new_table


def render_discovery(document: Mapping[str, Any], console: Console) -> None:
    """Print a discovery's JSON document."""
    if document["history"]:
        table = new_table("moments", "moment", "accuracy %", "misclassified", "distance", "")
        for record in document["history"]:
            far = record["distance"]
            table.add_row(
                record["moment"],
                percent(record["accuracy"]),
                str(record["misclassified"]),
                "-" if far is None else f"{far:.3f}",
                "chosen" if record["chosen"] else "",
            )
        console.print(table)
        console.print()
    table = new_table("guessed bias", "value", "rows")
    for value, count in document["values"].items():
        table.add_row(Text(value), str(count))
    console.print(table)
    for column, row in document["agreement"].items():
        told = f"{row['normalised_mutual_information']:.2f}"
        line = f"{column}: normalised mutual information with the guess {told}"
        if "conflicting" in row:
            line += (
                f"; {row['conflicting']} conflicting rows, recall {percent(row['recall'])} %, "
                f"precision {percent(row['precision'])} %"
            )
        console.print(Text(line))
    console.print()
