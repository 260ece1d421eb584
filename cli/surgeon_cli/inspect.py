"""`surgeon inspect`: what a checkpoint is, and what a mask may touch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import print_json, result_console
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups


@reports_errors
@takes_groups
def inspect(
    checkpoint: opt.Checkpoint,
    columns: opt.LabelFlags,
    network: opt.NetworkFlags,
    compute: opt.ComputeOnCpuFlags,
    bias_labels: Annotated[
        Path | None, typer.Option("--bias-labels", help="Label file to check without decoding.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Print architecture, gateable layers, classes, preprocessing, hash; check a label file."""
    import surgeon
    from surgeon.report import render_inspection

    subject = network.load(checkpoint, compute)
    labels = None
    if bias_labels is not None:
        labels = surgeon.read_labels(
            bias_labels,
            num_classes=subject.num_classes,
            label_names=subject.label_names,
            **columns.arguments(),
        )
    document = surgeon.inspect(subject, labels)
    if as_json:
        print_json(document)
    else:
        render_inspection(document, result_console())
