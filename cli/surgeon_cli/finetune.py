"""`surgeon finetune`: train all weights of the checkpoint on the labelled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import make_method, read_and_operate

_METHODS = ("finetune", "group-dro")


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The settings that methods of fine-tuning share, the seed left out."""

    lr: Annotated[float, typer.Option(help="Adam step at the start of the cosine.")] = 1e-3
    epochs: Annotated[int, typer.Option(help="Epochs.")] = 80
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 50
    balance: Annotated[
        str, typer.Option(help="groups draws them equally often, none takes rows as they are.")
    ] = "groups"


@reports_errors
@takes_groups
def finetune(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    flags: opt.OperationFlags,
    training: TrainingFlags,
    output: opt.OutputFlags,
    method: Annotated[
        str,
        typer.Option(help="finetune is plain, group-dro weighs groups by how badly they fare."),
    ] = "finetune",
) -> None:
    """Train all weights on the labelled rows, prove the result, and export it."""
    read_and_operate(
        checkpoint,
        bias_labels,
        flags,
        output,
        make_method(method, _METHODS, **vars(training), seed=flags.measures.seed),
        command="surgeon finetune",
    )
