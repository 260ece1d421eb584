"""`surgeon prune`: search a mask over the frozen weights and export the debiased model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import read_and_operate


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """The settings of `surgeon.FFW`, its seed left out."""

    mode: Annotated[str, typer.Option(help="unstructured or structured.")] = "unstructured"
    recipe: Annotated[str, typer.Option(help="default or paper.")] = "default"
    gamma: Annotated[float | None, typer.Option(help="Weight of the bias term.")] = None
    epochs: Annotated[int | None, typer.Option(help="Epochs at most.")] = None
    lr: Annotated[float | None, typer.Option(help="Adam step on the gate logits.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Rows per gate step.")] = None
    gate_head: Annotated[bool, typer.Option(help="Gate the head's weights too.")] = False
    balance: Annotated[
        str | None,
        typer.Option(help="groups draws them equally often, none takes rows as they are."),
    ] = None
    recalibrate: Annotated[
        bool | None, typer.Option(help="Carry recalibrated BatchNorm statistics.")
    ] = None
    erase_head: Annotated[
        bool | None, typer.Option(help="Fold the closed-form erasure into the head.")
    ] = None
    refit_head: Annotated[
        bool | None,
        typer.Option(help="End with last-layer retraining; default: if select rows favour it."),
    ] = None


@reports_errors
@takes_groups
def prune(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    flags: opt.OperationFlags,
    search: SearchFlags,
    shapes: opt.FormatFlags,
    output: opt.OutputFlags,
    sweep: Annotated[
        str | None, typer.Option(help="gamma=2,5,10,20: try each, choose on select rows.")
    ] = None,
) -> None:
    """Search a mask over the frozen weights (FFW), prove it, and export the debiased model."""
    import surgeon

    method = surgeon.FFW(**vars(search), seed=flags.measures.seed)
    formats, tried = shapes.read(), _read_sweep(sweep)
    for name, values in (tried or {}).items():
        for value in values:
            replace(method, **{name: value})  # refuses what is out of range
    read_and_operate(
        checkpoint,
        bias_labels,
        flags,
        output,
        method,
        command="surgeon prune",
        sweep=tried,
        formats=formats,
    )


def _read_sweep(text: str | None) -> dict[str, list[float]] | None:
    if text is None:
        return None
    from surgeon import OptionError

    name, _, values = text.partition("=")
    try:
        if name != "gamma":
            raise ValueError
        return {name: [float(value) for value in values.split(",")]}
    except ValueError:
        raise OptionError(f"--sweep: found '{text}', expected gamma=2,5,10,20") from None
