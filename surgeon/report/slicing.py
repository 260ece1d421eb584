"""What slicing took out of a checkpoint, and what it left though it is off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgeon.report.figures import table


def slice_lines(record: Mapping[str, Any]) -> Iterable[str]:
    """Tell what became of a sliced network, in sentences.

    Args:
        record: The `slice` entry of `surgeon.json`; empty where nothing was cut out.
    """
    if not record:
        yield "sliced: nothing could be cut out, so every tensor keeps its shape"
        return
    had, left = record["parameters"]["base"], record["parameters"]["left"]
    yield f"sliced: {left:,} of {had:,} parameters left ({100 * left / had:.1f} %)"
    reasons: dict[str, int] = {}
    for own in record["off_but_left"].values():
        for reason, n in own.items():
            reasons[reason] = reasons.get(reason, 0) + n
    for reason, n in reasons.items():
        yield f"  {n} units are off and stay: {reason}"


def render_slicing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render what can be cut out of each architecture as a Markdown table.

    Args:
        rows: `Sliced` of the benchmark, as mappings.
    """
    heads = (
        "architecture",
        "units",
        "off",
        "off and left",
        "parameters left",
        "multiply-adds left",
    )
    heads = (*heads, "folded", "sliced", "reloads")
    done = [row for row in rows if row["refused"] is None]
    body = [
        [
            row["architecture"],
            *(str(row[name]) for name in ("units", "off", "off_but_left")),
            *(f"{100 * row[name]:.1f} %" for name in ("parameters", "multiply_adds")),
            *(f"{row[name]:.0e}" for name in ("folded", "sliced")),
            "yes" if row["reloads"] else "no",
        ]
        for row in done
    ]
    refused = [f"- {row['architecture']}: {row['refused']}" for row in rows if row["refused"]]
    parts = [table(heads, body)] if done else []
    return "\n\n".join([*parts, *(["Refused:\n\n" + "\n".join(refused)] if refused else [])])
