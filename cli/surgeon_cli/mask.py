"""`surgeon mask`: a mask without search."""

from __future__ import annotations

from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import make_method, read_and_operate

_METHODS = ("gba-mask", "magnitude", "random")


@reports_errors
@takes_groups
def mask(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    flags: opt.OperationFlags,
    output: opt.OutputFlags,
    method: Annotated[
        str,
        typer.Option(
            help="gba-mask drops features that give the bias away; magnitude and random, weights."
        ),
    ] = "gba-mask",
    sparsity: Annotated[float, typer.Option(help="Share of features or weights to drop.")] = 0.5,
) -> None:
    """Apply a mask that needs no search, prove what it does, and export the model."""
    read_and_operate(
        checkpoint,
        bias_labels,
        flags,
        output,
        make_method(method, _METHODS, sparsity=sparsity, seed=flags.measures.seed),
        command="surgeon mask",
    )
