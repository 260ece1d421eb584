"""How much of an architecture can be cut out, and that no logit changes by it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor

from surgeon.architecture import Architecture
from surgeon.checkpoint import write_safetensors
from surgeon.cost import multiply_adds
from surgeon.edit import Edit, UnitMask
from surgeon.errors import SurgeonError
from surgeon.export import export, write_json
from surgeon.formats import Formats
from surgeon.loading import load
from surgeon.methods.base import new_edit
from surgeon.sites import unit_sites
from surgeon.subject import Subject, as_saved_
from surgeon.surgery import apply

_OFF = 0.3
# Of every family that people own: plain, residual, grouped, dense, squeezed, attention, mixed.
ARCHITECTURES = (
    *("resnet18", "resnet50", "resnetv2_50", "resnext50_32x4d", "wide_resnet50_2", "seresnet50"),
    *("regnety_002", "densenet121", "vgg11_bn", "mobilenetv2_100", "mobilenetv3_small_050"),
    *("efficientnet_b0", "convnext_atto", "convnextv2_atto", "nfnet_l0", "nf_resnet50"),
    *("inception_v3", "torchvision:googlenet", "torchvision:squeezenet1_1", "ghostnet_100"),
    *("torchvision:shufflenet_v2_x0_5", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"),
    *("mixer_s32_224", "coat_tiny", "maxvit_tiny_tf_224", "torchvision:vit_b_16"),
    *("transformers:vit", "transformers:resnet"),
)
# Where the default of a model_type is larger than need be.
_TRANSFORMERS = {
    "vit": {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
    "resnet": {},
}
_PROCESSOR = {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
folder, data = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(folder))
from load_sliced import load
torch.set_num_threads(int(sys.argv[3]))
with torch.no_grad():
    logits = load(folder)(load_file(data / "x")["x"])
    save_file({"logits": getattr(logits, "logits", logits)}, data / "y")
"""


@dataclass(frozen=True)
class Sliced:
    """What became of one architecture."""

    architecture: str
    refused: str | None = None
    """Why nothing could be cut; the figures are None then."""
    units: int | None = None
    """Units that can be gated."""
    off: int | None = None
    off_but_left: int | None = None
    parameters: float | None = None
    """Share that is left."""
    multiply_adds: float | None = None
    """Share that is left, of one image."""
    folded: float | None = None
    """Largest difference of folded and gated logits, float64, relative to the largest logit."""
    sliced: float | None = None
    """The same of sliced and gated ones."""
    reloads: bool | None = None
    """A fresh process without surgeon gives the same logits, bit for bit."""


def measure_slicing(
    name: str, *, off: float = _OFF, seed: int = 0, keep: Path | None = None
) -> Sliced:
    """Switch off a random share of an architecture's units, cut them out, and compare logits.

    Weights are random, and so are scales, shifts and running statistics of normalisations.

    Args:
        name: A timm name, `torchvision:NAME`, or `transformers:vit` or `resnet`.
        off: Share of every layer's units.
        seed: Of weights, masks and images.
        keep: Folder to leave the sliced network in, for `surgeon report`.
    """
    with TemporaryDirectory() as parent:
        try:
            subject = _random_subject(name, Path(parent), seed)
            edit = _random_edit(subject, off, seed)
            out = keep or Path(parent, "out")
            export(subject, edit, out, formats=Formats(slice=True))
        except SurgeonError as error:
            return Sliced(name, refused=str(error))
        record = json.loads((out / "surgeon.json").read_text(encoding="utf-8")).get("slice")
        if record is None:
            return Sliced(name, refused="no unit can be cut out exactly")
        left = sum(sum(own.values()) for own in record["off_but_left"].values())
        sizes = record["parameters"]
        return replace(
            _compared(name, subject, edit, out, seed),
            off_but_left=left,
            parameters=sizes["left"] / sizes["base"],
        )


def _random_subject(name: str, folder: Path, seed: int) -> Subject:
    library, _, own = name.rpartition(":")
    config = {"architecture": own, "library": library or "timm", "num_classes": 10}
    if library == "transformers":
        config = {"model_type": own, "num_labels": 10, **_TRANSFORMERS[own]}
        architecture = Architecture(library, own, None, config)
    else:
        architecture = Architecture(library or "timm", own, 10)
    torch.manual_seed(seed)
    net, generator = architecture.build(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.dim() == 1:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    (folder / "base").mkdir()
    tensors = dict(net.state_dict())
    write_safetensors(folder / "base" / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "base" / "config.json", config)
    if library == "transformers":
        write_json(folder / "base" / "preprocessor_config.json", _PROCESSOR)
    return load(folder / "base")


def _random_edit(subject: Subject, off: float, seed: int) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    units = {
        site.name: UnitMask(
            torch.randperm(site.shape[0], generator=generator) >= round(off * site.shape[0]),
            site.folds,
        )
        for site in unit_sites(subject)
    }
    return new_edit(subject, "random", units=units)


def _compared(name: str, subject: Subject, edit: Edit, out: Path, seed: int) -> Sliced:
    folded, small = apply(subject, edit), load(out)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *subject.preprocessing.input_size, generator=generator)
    wide, exact = copy.deepcopy(subject.net).double(), x.double()
    changes = {key: value.double() for key, value in edit.changes(subject.tensors()).items()}
    with torch.no_grad():
        gated = torch.func.functional_call(wide, changes, (exact,))
        others = [copy.deepcopy(s.net).double()(exact) for s in (folded, small)]
        plain = as_saved_(small.net)(x)
    differences = [float((other - gated).abs().max() / gated.abs().max()) for other in others]
    again = _fresh_logits(out, x)
    masks = [unit.keep for unit in edit.units.values()]
    costs = [multiply_adds(net, x[:1]) for net in (small.net, subject.net)]
    return Sliced(
        name,
        units=sum(map(len, masks)),
        off=sum(int((~mask).sum()) for mask in masks),
        multiply_adds=costs[0] / costs[1],
        folded=differences[0],
        sliced=differences[1],
        reloads=torch.equal(again, plain),
    )


def _fresh_logits(out: Path, x: Tensor) -> Tensor:
    """Load the folder in another process, without surgeon, and return its logits."""
    with TemporaryDirectory() as folder:
        write_safetensors(Path(folder, "x"), {"x": x}, {})
        threads = str(torch.get_num_threads())
        command = [sys.executable, "-c", _FRESH, str(out), folder, threads]
        subprocess.run(command, check=True, capture_output=True)
        return load_file(Path(folder, "y"))["logits"]
