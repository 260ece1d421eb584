"""Flags that several commands share, and their reading into the library's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from surgeon import Data, Measures, Subject

Checkpoint = Annotated[
    Path,
    typer.Argument(help="A .safetensors or PyTorch file, or a directory with model.safetensors."),
]
BiasLabels = Annotated[
    Path,
    typer.Option("--bias-labels", help="CSV or TSV with path, target, bias and, if any, split."),
]
Images = Annotated[Path | None, typer.Option(help="Folder that image paths start from.")]
TargetCol = Annotated[str, typer.Option(help="Column of the target.")]
BiasCol = Annotated[list[str], typer.Option(help="Column of a bias to remove; repeatable.")]
AuditCol = Annotated[
    list[str], typer.Option(help="Column of a bias to measure and never fit; repeatable.")
]
SixteenBit = Annotated[
    str | None, typer.Option(help="What to do with 16-bit grey images: scale or clip.")
]
Aligned = Annotated[
    list[str],
    typer.Option(help="bias=value:target, the target a bias value pulls toward; repeatable."),
]
TrainCounts = Annotated[
    Path | None, typer.Option(help="CSV of target, biases and count where the model was trained.")
]
MinGroup = Annotated[int, typer.Option(min=1, help="Report rows a worst group needs.")]
Arch = Annotated[
    str | None, typer.Option(help="timm:NAME, torchvision:NAME or a name; default: config.json.")
]
Factory = Annotated[
    str | None, typer.Option(help="package.module:function that returns the network.")
]
ModelKwargs = Annotated[
    list[str], typer.Option(help="KEY=VALUE of the network's constructor; repeatable.")
]
InputSize = Annotated[
    tuple[int, int, int] | None, typer.Option(help="Channels, height, width of the input.")
]
Mean = Annotated[tuple[float, float, float] | None, typer.Option(help="Mean to subtract.")]
Std = Annotated[tuple[float, float, float] | None, typer.Option(help="Deviation to divide by.")]
Interpolation = Annotated[str | None, typer.Option(help="Resize method, as timm names it.")]
CropPct = Annotated[float | None, typer.Option(help="Share of the image the centre crop keeps.")]
CropMode = Annotated[str | None, typer.Option(help="center, squash or border.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Amp = Annotated[bool | None, typer.Option(help="Mixed precision; default: on for CUDA.")]
AmpDtype = Annotated[str, typer.Option(help="bfloat16 or float16.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that decode images.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
WithFinetune = Annotated[bool, typer.Option(help="Add the row of plain fine-tuning.")]
Out = Annotated[Path | None, typer.Option(help="Folder to make; default: CHECKPOINT-debiased.")]
Force = Annotated[bool, typer.Option(help="Replace an earlier result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option(help="No progress on stderr.")]


def load_subject(checkpoint: Path, options: dict[str, Any]) -> Subject:
    """Load the checkpoint with the network, preprocessing and device flags of a command."""
    import torch

    import surgeon

    dtype = options["amp_dtype"]
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise surgeon.OptionError(f"--amp-dtype: found '{dtype}', expected bfloat16 or float16")
    device = surgeon.find_device(options["device"])
    amp = device.type == "cuda" if options["amp"] is None else options["amp"]
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    return surgeon.load(
        checkpoint,
        arch=options["arch"],
        factory=options["factory"],
        model_kwargs=dict(_pair("--model-kwargs", text) for text in options["model_kwargs"]),
        preprocessing={name: options[name] for name in names},
        device=str(device),
        amp_dtype=dtypes[dtype] if amp else None,
    )


def load_data(subject: Subject, bias_labels: Path, options: dict[str, Any]) -> Data:
    """Read the labelled set with the label flags of a command."""
    import surgeon

    return surgeon.read_data(
        subject,
        bias_labels,
        images=options["images"],
        target_col=options["target_col"],
        bias_cols=options["bias_col"],
        audit_cols=options["audit_col"],
        sixteen_bit=options["sixteen_bit"],
        workers=options["workers"],
    )


def read_measures(data: Data, options: dict[str, Any]) -> Measures:
    """Read the flags that say how results are measured."""
    import surgeon

    counts = options["train_counts"]
    return surgeon.Measures(
        aligned=_aligned(options["aligned"]),
        min_group=options["min_group"],
        train_counts=surgeon.read_train_counts(counts, data.report.groups) if counts else None,
        with_finetune=options.get("with_finetune", False),
        seed=options["seed"],
    )


def _pair(flag: str, text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value is JSON where it parses, else a string."""
    import json

    from surgeon import OptionError

    key, equals, value = text.partition("=")
    if not (key and equals):
        raise OptionError(f"{flag}: found '{text}', expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _aligned(texts: Sequence[str]) -> dict[str, dict[str, str]] | None:
    from surgeon import OptionError

    found: dict[str, dict[str, str]] = {}
    for text in texts:
        column, equals, rest = text.partition("=")
        value, colon, target = rest.partition(":")
        if not (column and equals and value and colon and target):
            raise OptionError(f"--aligned: found '{text}', expected bias=value:target")
        found.setdefault(column, {})[value] = target
    return found or None
