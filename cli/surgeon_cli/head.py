"""`surgeon head`: change the last layer alone."""

from __future__ import annotations

from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import make_method, read_and_operate

_METHODS = ("dfr", "leace")


@reports_errors
@takes_groups
def head(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    flags: opt.OperationFlags,
    output: opt.OutputFlags,
    method: Annotated[
        str, typer.Option(help="dfr refits it on balanced groups, leace erases the bias before it.")
    ] = "dfr",
) -> None:
    """Retrain the last layer or erase what it reads, prove it, and export the model."""
    read_and_operate(
        checkpoint,
        bias_labels,
        flags,
        output,
        make_method(method, _METHODS),
        command="surgeon head",
    )
