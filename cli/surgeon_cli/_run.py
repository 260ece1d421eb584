"""Fit, measure, export, show: the way from a subject and its data to a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon_cli._console import Progress, print_json, result_console

if TYPE_CHECKING:
    from surgeon import FFW, Data, Measures, Subject


def default_out(checkpoint: Path) -> Path:
    """Return `<stem>-debiased` beside a checkpoint file, `<dir>-debiased` for a directory."""
    name = checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem
    return (checkpoint.resolve() if checkpoint.is_dir() else checkpoint).with_name(
        f"{name}-debiased"
    )


def prune_and_export(
    subject: Subject,
    data: Data,
    method: FFW,
    measures: Measures,
    out: Path,
    *,
    command: str,
    force: bool,
    sweep: Mapping[str, Sequence[float]] | None = None,
    progress: Progress,
    as_json: bool,
) -> None:
    """Run the method, write the folder, print the tables and the verdict."""
    import torch

    import surgeon
    from surgeon.report import render_report

    outcome = surgeon.operate(
        subject,
        data,
        method,
        measures=measures,
        sweep=sweep,
        progress=progress.epoch,
        announce=progress.stage,
    )
    progress.stage(f"writing {out}")
    rows = torch.arange(min(surgeon.PROBE_ROWS, len(data.report)))
    surgeon.export(
        subject,
        outcome.edit,
        out,
        images=data.report.batch(rows),
        report=outcome.report,
        provenance=surgeon.Provenance(
            command=command, config=outcome.report.config, seed=measures.seed
        ),
        force=force,
    )
    document = outcome.report.to_json()
    if as_json:
        print_json(document)
        return
    console = result_console()
    render_report(document, console, sweep=outcome.report.sweep)
    console.print(f"written: {out}", soft_wrap=True)
