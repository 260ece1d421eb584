"""`surgeon apply`: rebuild an export from its base and its edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import result_console
from surgeon_cli._errors import reports_errors
from surgeon_cli._run import default_out


@reports_errors
def apply(
    base: opt.Checkpoint,
    edit: Annotated[Path, typer.Argument(help="An edit.safetensors.")],
    recalibrate: Annotated[bool, typer.Option(help="Apply the BatchNorm statistics.")] = True,
    erase_head: Annotated[bool, typer.Option(help="Apply the erasure.")] = True,
    arch: opt.Arch = None,
    factory: opt.Factory = None,
    model_kwargs: opt.ModelKwargs = [],  # noqa: B006
    input_size: opt.InputSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    interpolation: opt.Interpolation = None,
    crop_pct: opt.CropPct = None,
    crop_mode: opt.CropMode = None,
    out: opt.Out = None,
    force: opt.Force = False,
) -> None:
    """Carry an edit out on the checkpoint it was made from, and export the result."""
    options = {**locals(), "device": "cpu", "amp": False, "amp_dtype": "bfloat16"}
    import surgeon

    where = out or default_out(base)
    surgeon.check_out(where, force=force, inputs=(base, edit))
    subject = opt.load_subject(base, options)
    change = surgeon.Edit.load(edit)
    left_out = [
        part for part, kept in (("buffers", recalibrate), ("erasure", erase_head)) if not kept
    ]
    provenance = surgeon.Provenance(command="surgeon apply", config={}, seed=None)
    surgeon.export(subject, change.without(*left_out), where, provenance=provenance, force=force)
    result_console().print(f"written: {where}", soft_wrap=True)
