"""Tables of the benchmarks: means and standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from surgeon.report.terminal import new_table


def render_step_times(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print gate-step times beside Adam-step times."""
    table = new_table(
        "gate step / Adam step", "net", "mode", "gate ms", "Adam ms", "ratio", "quartiles"
    )
    for row in rows:
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        times = [f"{row[k]:.1f}" for k in ("gate_ms", "adam_ms")]
        table.add_row(row["net"], row["mode"], *times, f"{row['ratio']:.2f}", spread)
    console.print(table)


def render_bench(runs: Sequence[Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Print one row per operation, mean and standard deviation over runs, in percent."""
    columns = ("average", "bottleneck", "head input", "logits", "sparsity", "seconds")
    table = new_table(f"{len(runs)} seeds; leakage: linear / MLP probe", "operation", *columns)
    for rows in zip(*runs, strict=True):
        audits = [row["audit"] for row in rows]
        places = [next(iter(audit["biases"].values()))["leakage"] for audit in audits]
        table.add_row(
            rows[0]["name"],
            _spread([audit["average_accuracy"] for audit in audits]),
            *(
                _leak([place[name] for place in places])
                for name in ("bottleneck", "head_input", "logits")
            ),
            _mean([row["sparsity"]["gated"] for row in rows]),
            f"{fmean(row['seconds'] for row in rows):.0f}",
        )
    console.print(table)


def _leak(kinds: Sequence[Mapping[str, float | None] | None]) -> str:
    if any(kind is None for kind in kinds):
        return "-"
    return " / ".join(_mean([kind[name] for kind in kinds if kind]) for name in ("linear", "mlp"))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * fmean(known):.1f}" if len(known) == len(values) else "-"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{deviation}"
