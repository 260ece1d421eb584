"""Flags that several commands share, in groups, and their reading into the library's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from surgeon import Data, Formats, Measures, Subject

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
Explain = Annotated[
    bool, typer.Option("--explain", help="Draw where the network looks, by Grad-CAM, in the page.")
]
Slice = Annotated[bool, typer.Option("--slice", help="Cut units that are off out of the file.")]
RoundTo = Annotated[int, typer.Option(help="Leave a multiple of this many units to a layer.")]
Full = Annotated[
    bool, typer.Option("--full", help="Beside the sliced file write one in full shapes.")
]
Onnx = Annotated[bool, typer.Option("--onnx", help="Write model.onnx too.")]
TorchExport = Annotated[
    bool, typer.Option("--torch-export", help="Write model.pt2 for torch.export.load too.")
]
Out = Annotated[Path | None, typer.Option(help="Folder to make; default: CHECKPOINT-debiased.")]
Force = Annotated[bool, typer.Option(help="Replace an earlier result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option(help="No progress on stderr.")]


@dataclass(frozen=True, kw_only=True)
class ComputeFlags:
    """Where a network runs, and how precisely."""

    device: Device = "auto"
    amp: Amp = None
    amp_dtype: AmpDtype = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class ComputeOnCpuFlags(ComputeFlags):
    """The same for what is done on the CPU unless the user asks otherwise."""

    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which network a checkpoint is of, and what it is fed."""

    arch: Arch = None
    factory: Factory = None
    model_kwargs: ModelKwargs = field(default_factory=list)
    input_size: InputSize = None
    mean: Mean = None
    std: Std = None
    interpolation: Interpolation = None
    crop_pct: CropPct = None
    crop_mode: CropMode = None

    def load(self, checkpoint: Path, compute: ComputeFlags) -> Subject:
        """Load the checkpoint."""
        import torch

        import surgeon

        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        if compute.amp_dtype not in dtypes:
            raise surgeon.OptionError(
                f"--amp-dtype: found '{compute.amp_dtype}', expected bfloat16 or float16"
            )
        device = surgeon.find_device(compute.device)
        amp = device.type == "cuda" if compute.amp is None else compute.amp
        names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        return surgeon.load(
            checkpoint,
            arch=self.arch,
            factory=self.factory,
            model_kwargs=dict(_pair("--model-kwargs", text) for text in self.model_kwargs),
            preprocessing={name: getattr(self, name) for name in names},
            device=str(device),
            amp_dtype=dtypes[compute.amp_dtype] if amp else None,
        )


@dataclass(frozen=True, kw_only=True)
class LabelFlags:
    """What the columns of a label file are."""

    images: Images = None
    target_col: TargetCol = "target"
    bias_col: BiasCol = field(default_factory=lambda: ["bias"])
    audit_col: AuditCol = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """Return them under the names of the library's readers."""
        return {
            "images": self.images,
            "target_col": self.target_col,
            "bias_cols": self.bias_col,
            "audit_cols": self.audit_col,
        }


@dataclass(frozen=True, kw_only=True)
class RowFlags(LabelFlags):
    """The same, and how images are read."""

    sixteen_bit: SixteenBit = None
    workers: Workers = None

    def read(self, subject: Subject, bias_labels: Path) -> Data:
        """Read the labelled set."""
        import surgeon

        return surgeon.read_data(
            subject,
            bias_labels,
            **self.arguments(),
            sixteen_bit=self.sixteen_bit,
            workers=self.workers,
        )


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What an operation leaves behind and prints."""

    out: Out = None
    force: Force = False
    as_json: Json = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class FormatFlags:
    """In which shapes the checkpoint is written."""

    slice: Slice = False
    round_to: RoundTo = 1
    full: Full = False
    onnx: Onnx = False
    torch_export: TorchExport = False

    def read(self) -> Formats:
        """Return them as the library takes them."""
        import surgeon

        return surgeon.Formats(**vars(self))


@dataclass(frozen=True, kw_only=True)
class MeasureFlags:
    """How results are measured."""

    aligned: Aligned = field(default_factory=list)
    train_counts: TrainCounts = None
    min_group: MinGroup = 10
    seed: Seed = 0

    def read(self, data: Data) -> Measures:
        """Read the way to measure on some data."""
        import surgeon

        counts = self.train_counts
        return surgeon.Measures(
            aligned=_aligned(self.aligned),
            min_group=self.min_group,
            train_counts=surgeon.read_train_counts(counts, data.report.groups) if counts else None,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class ComparedFlags(MeasureFlags):
    """The same, for an operation that plain fine-tuning may stand beside."""

    with_finetune: WithFinetune = False

    def read(self, data: Data) -> Measures:
        """Read the way to measure on some data."""
        return replace(super().read(data), with_finetune=self.with_finetune)


@dataclass(frozen=True, kw_only=True)
class OperationFlags:
    """What every command that operates takes beside its files and its method."""

    rows: RowFlags
    measures: ComparedFlags
    network: NetworkFlags
    compute: ComputeFlags
    explain: Explain = False


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
