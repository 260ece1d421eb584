"""Read, fit, measure, export, show: the way from a checkpoint and its labels to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress, print_json, result_console

if TYPE_CHECKING:
    from surgeon import Data, Formats, Measures, Method, Subject


def on_disk(checkpoint: Path) -> Path:
    """Return the path of a checkpoint that is given as `local-dir:PATH`."""
    return Path(str(checkpoint).removeprefix("local-dir:"))


def beside(checkpoint: Path, what: str) -> Path:
    """Return `<stem>-<what>` beside a checkpoint file, `<dir>-<what>` for a directory.

    For `hf-hub:OWNER/NAME` it is `NAME-<what>` in the working directory.
    """
    if str(checkpoint).startswith("hf-hub:"):
        return Path(f"{Path(str(checkpoint).partition('@')[0]).name}-{what}")
    checkpoint = on_disk(checkpoint)
    name = checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem
    return (checkpoint.resolve() if checkpoint.is_dir() else checkpoint).with_name(f"{name}-{what}")


def check_method(name: str, known: Sequence[str]) -> None:
    """Refuse a `--method` that a command does not know."""
    from surgeon import OptionError

    if name not in known:
        raise OptionError(f"--method: found '{name}', expected {' or '.join(known)}")


def make_method(name: str, known: Sequence[str], **settings: Any) -> Method:
    """Make the method that `--method` names, one of those a command knows."""
    import surgeon

    check_method(name, known)
    return surgeon.METHODS[name](**settings)


def read_and_operate(
    checkpoint: Path,
    bias_labels: Path,
    flags: opt.OperationFlags,
    output: opt.OutputFlags,
    method: Method,
    *,
    command: str,
    sweep: Mapping[str, Sequence[float]] | None = None,
    formats: Formats | None = None,
) -> None:
    """Do what every command that operates does, from its files and flags on."""
    import surgeon

    where = output.out or beside(checkpoint, "debiased")
    surgeon.check_out(where, force=output.force, inputs=(on_disk(checkpoint), bias_labels))
    progress = Progress(quiet=output.quiet)
    progress.stage(f"reading {checkpoint} and {bias_labels}")
    subject = flags.network.load(checkpoint, flags.compute)
    data = flags.rows.read(subject, bias_labels)
    operate_and_export(
        subject,
        data,
        method,
        flags.measures.read(data),
        where,
        command=command,
        force=output.force,
        sweep=sweep,
        explain=flags.explain,
        formats=formats,
        progress=progress,
        as_json=output.as_json,
    )


def operate_and_export(
    subject: Subject,
    data: Data,
    method: Method,
    measures: Measures,
    out: Path,
    *,
    command: str,
    force: bool,
    sweep: Mapping[str, Sequence[float]] | None = None,
    explain: bool = False,
    formats: Formats | None = None,
    progress: Progress,
    as_json: bool,
) -> None:
    """Run the method, write the folder, print the tables and the verdict."""
    import torch

    import surgeon
    from surgeon.report import render_report, write_page

    outcome = surgeon.operate(
        subject,
        data,
        method,
        measures=measures,
        sweep=sweep,
        explain=explain,
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
        formats=formats,
        force=force,
    )
    write_page(out)
    document = outcome.report.to_json()
    if as_json:
        print_json(document)
        return
    console = result_console()
    render_report(document, console, sweep=outcome.report.sweep)
    tell_written(out, formats)


def tell_written(out: Path, formats: Formats | None) -> None:
    """Say where the result is, and what slicing made of it."""
    from surgeon.report import slice_lines

    console = result_console()
    if formats and formats.slice:
        record = json.loads((out / "surgeon.json").read_text(encoding="utf-8"))
        for line in slice_lines(record.get("slice", {})):
            console.print(line, soft_wrap=True)
    console.print(f"written: {out}", soft_wrap=True)
    if (out / "report" / "index.html").is_file():
        console.print(f"to look at: {out / 'report' / 'index.html'}", soft_wrap=True)
