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
    recipe: Annotated[str, typer.Option(help="default, or for dfr the paper's.")] = "default",
) -> None:
    """Retrain the last layer or erase what it reads, prove it, and export the model."""
    from surgeon import OptionError

    settings = {"recipe": recipe, "seed": flags.measures.seed} if method == "dfr" else {}
    if not settings and recipe != "default":
        raise OptionError(f"--recipe: found '{recipe}', expected default with --method {method}")
    read_and_operate(
        checkpoint,
        bias_labels,
        flags,
        output,
        make_method(method, _METHODS, **settings),
        command="surgeon head",
    )
