"""`surgeon finetune`: train all weights of the checkpoint on the labelled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import make_method, read_and_operate

_METHODS = (
    *("finetune", "group-dro", "vcba", "clusterfix", "gba", "gba-n", "gba-c", "adversarial"),
    *("csad", "csad-content", "csad-struct"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The settings that methods of fine-tuning share, the seed left out."""

    recipe: Annotated[str, typer.Option(help="default or paper, for methods that have one.")] = (
        "default"
    )
    lr: Annotated[float | None, typer.Option(help="Largest step.")] = None
    epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Rows per step.")] = None
    balance: Annotated[
        str | None,
        typer.Option(help="groups draws them equally often, none takes rows as they are."),
    ] = None
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train new weights, with --recipe paper.")
    ] = False


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
        typer.Option(
            help="finetune is plain; group-dro weighs groups, clusterfix its own clusters, by how "
            "badly they fare; vcba draws rows that go against the bias as often as the others "
            "and lowers what is told of it within classes; gba trains against an adversary and "
            "drops features by its gradients (gba-n, gba-c: ablations; adversarial: none "
            "dropped); csad removes what pairs of images tell of the bias (csad-content, "
            "csad-struct: parts of it)."
        ),
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
