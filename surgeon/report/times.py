"""Show measured times on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from surgeon.report.terminal import new_table


def render_step_times(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print gate-step times beside Adam-step times."""
    steps = new_table(
        "gate step / Adam step", "net", "mode", "gate ms", "Adam ms", "ratio", "quartiles"
    )
    for row in rows:
        quartiles = f"{row['low']:.2f} to {row['high']:.2f}"
        times = [f"{row[k]:.1f}" for k in ("gate_ms", "adam_ms")]
        steps.add_row(row["net"], row["mode"], *times, f"{row['ratio']:.2f}", quartiles)
    console.print(steps)


def render_refit_time(times: Mapping[str, Any], console: Console) -> None:
    """Print what a refit of a bias head takes, on cached features and through the network."""
    found = new_table("refit of a bias head", "features", "seconds")
    found.add_row(f"rows x epochs: {times['rows']} x {times['epochs']}", "")
    found.add_row("cached", f"{times['cached_s']:.2f}")
    found.add_row("network run again", f"{times['network_s']:.2f}")
    found.add_row("ratio", f"{times['ratio']:.0f}")
    console.print(found)
