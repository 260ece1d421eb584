"""What a network costs to keep and to run, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from surgeon.report.terminal import new_table

_MIB = 1 << 20


def render_cost(cost: Mapping[str, Any], console: Console) -> None:
    """Print a `Cost` as a mapping: sizes, and images a second beside the full shapes."""
    full, edited = cost["full"], cost["edited"]
    sizes = new_table("size", "", "full shapes", "this file", "left")
    for name, key, unit in (
        ("parameters, millions", "parameters", 1e6),
        ("multiply-adds of one image, millions", "multiply_adds", 1e6),
        ("tensors, MiB", "tensor_bytes", _MIB),
    ):
        shown = [f"{side[key] / unit:,.2f}" for side in (full, edited)]
        sizes.add_row(name, *shown, f"{100 * edited[key] / full[key]:.1f} %")
    packed = f"{cost['compressed_bytes'] / _MIB:,.2f}"
    share = f"{100 * cost['compressed_bytes'] / cost['file_bytes']:.1f} % of the file"
    sizes.add_row("the file compressed, MiB", "-", packed, share)
    console.print(sizes)
    where = f"{cost['device']}, {cost['threads']} threads, median of runs in turn"
    speeds = new_table(
        f"images a second ({where})",
        *("batch", "full shapes", "this file", "ratio", "quartiles", "peak, MiB"),
    )
    for row in cost["speeds"]:
        speeds.add_row(
            str(row["batch"]),
            f"{row['full']:.1f}",
            f"{row['edited']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['full_peak'] / _MIB:.0f} to {row['edited_peak'] / _MIB:.0f}",
        )
    console.print(speeds)
    if not cost["sliced"]:
        console.print(
            Text(
                "note: every tensor has its full shape; zeros are stored and multiplied like other "
                "weights, so no speed-up is to be expected, and only compressing the file makes "
                "it smaller"
            )
        )
