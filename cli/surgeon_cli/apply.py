"""`surgeon apply`: rebuild an export from its base and its edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import beside, on_disk, tell_written


@reports_errors
@takes_groups
def apply(
    base: opt.Checkpoint,
    edit: Annotated[Path, typer.Argument(help="An edit.safetensors.")],
    network: opt.NetworkFlags,
    shapes: opt.FormatFlags,
    recalibrate: Annotated[bool, typer.Option(help="Apply the BatchNorm statistics.")] = True,
    erase_head: Annotated[bool, typer.Option(help="Apply the erasure.")] = True,
    out: opt.Out = None,
    force: opt.Force = False,
) -> None:
    """Carry an edit out on the checkpoint it was made from, and export the result."""
    import surgeon

    formats, where = shapes.read(), out or beside(base, "debiased")
    surgeon.check_out(where, force=force, inputs=(on_disk(base), edit))
    subject = network.load(base, opt.ComputeOnCpuFlags(amp=False))
    change = surgeon.Edit.load(edit)
    left_out = [
        part for part, kept in (("buffers", recalibrate), ("erasure", erase_head)) if not kept
    ]
    provenance = surgeon.Provenance(command="surgeon apply", config={}, seed=None)
    surgeon.export(
        subject,
        change.without(*left_out),
        where,
        provenance=provenance,
        formats=formats,
        force=force,
    )
    tell_written(where, formats)
