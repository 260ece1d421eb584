"""`surgeon inspect`: what a checkpoint is, and what a mask may touch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import print_json, result_console
from surgeon_cli._errors import reports_errors


@reports_errors
def inspect(
    checkpoint: opt.Checkpoint,
    bias_labels: Annotated[
        Path | None, typer.Option("--bias-labels", help="Label file to check without decoding.")
    ] = None,
    images: opt.Images = None,
    target_col: opt.TargetCol = "target",
    bias_col: opt.BiasCol = ["bias"],  # noqa: B006
    audit_col: opt.AuditCol = [],  # noqa: B006
    arch: opt.Arch = None,
    factory: opt.Factory = None,
    model_kwargs: opt.ModelKwargs = [],  # noqa: B006
    input_size: opt.InputSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    interpolation: opt.Interpolation = None,
    crop_pct: opt.CropPct = None,
    crop_mode: opt.CropMode = None,
    device: opt.Device = "cpu",
    amp: opt.Amp = None,
    amp_dtype: opt.AmpDtype = "bfloat16",
    as_json: opt.Json = False,
) -> None:
    """Print architecture, gateable layers, classes, preprocessing, hash; check a label file."""
    options = dict(locals())
    import surgeon
    from surgeon.report import render_inspection

    subject = opt.load_subject(checkpoint, options)
    labels = None
    if bias_labels is not None:
        labels = surgeon.read_labels(
            bias_labels,
            num_classes=subject.num_classes,
            label_names=subject.label_names,
            target_col=target_col,
            bias_cols=bias_col,
            audit_cols=audit_col,
            images=images,
        )
    document = surgeon.inspect(subject, labels)
    if as_json:
        print_json(document)
    else:
        render_inspection(document, result_console())
