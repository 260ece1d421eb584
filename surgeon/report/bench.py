"""Tables of the benchmarks: means and standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from surgeon.findings import AVERAGES, PLACES
from surgeon.report.terminal import new_table, operation_table


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
    """Print accuracy and leakage of every operation, means (± deviation) over runs, %."""
    seeds = f"{len(runs)} seeds"
    heads = [name.removesuffix("_accuracy").replace("_", " ") for name in AVERAGES]
    accuracy = operation_table(f"accuracy, %, {seeds}", *heads, "sparsity", "seconds")
    title = f"leakage, linear / MLP probe, %, {seeds}"
    leakage = operation_table(title, *(place.replace("_", " ") for place in PLACES))
    for rows in zip(*runs, strict=True):
        audits = [row["audit"] for row in rows]
        accuracy.add_row(
            rows[0]["name"],
            *(_spread([audit[name] for audit in audits]) for name in AVERAGES),
            _mean([row["sparsity"]["gated"] for row in rows]),
            f"{fmean(row['seconds'] for row in rows):.0f}",
        )
        leaks = [next(iter(audit["biases"].values()))["leakage"] for audit in audits]
        leakage.add_row(rows[0]["name"], *(_leak([leak[p] for leak in leaks]) for p in PLACES))
    for table in (accuracy, leakage):
        console.print(table)
        console.print()


def _leak(kinds: Sequence[Mapping[str, float | None] | None]) -> str:
    if any(kind is None for kind in kinds):
        return "-"
    return " / ".join(_mean([kind[name] for kind in kinds if kind]) for name in ("linear", "mlp"))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * fmean(known):.1f}" if len(known) == len(values) else "-"


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    deviation = f" ± {100 * stdev(known):.1f}" if len(known) == len(values) > 1 else ""
    return f"{_mean(values)}{deviation}"
