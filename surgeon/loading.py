"""From a checkpoint's files to a frozen subject."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon import hugging_face
from surgeon.architecture import (
    Architecture,
    differences,
    own_preprocessing,
    resolve_architecture,
)
from surgeon.checkpoint import Checkpoint, read_checkpoint
from surgeon.errors import CheckpointError
from surgeon.head import find_head
from surgeon.load_sliced import shrink_
from surgeon.preprocessing import Preprocessing
from surgeon.subject import Subject, find_device, freeze


def load(
    checkpoint: str | Path,
    *,
    arch: str | None = None,
    factory: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    device: str = "cpu",
    amp_dtype: torch.dtype | None = None,
) -> Subject:
    """Load a checkpoint as a frozen subject.

    Args:
        checkpoint: `.safetensors` or PyTorch file, or a directory with `model.safetensors`, also as
            `local-dir:PATH`, or `hf-hub:OWNER/NAME`.
        arch: `timm:NAME`, `torchvision:NAME` or a bare name; default: `config.json`.
        factory: `package.module:function` returning the network, instead of `arch`.
        model_kwargs: Constructor arguments, over those of `config.json`.
        preprocessing: timm's `input_size`, `mean`, `std`, `interpolation`, `crop_pct`,
            `crop_mode`, each over the checkpoint's own; None values are ignored.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        amp_dtype: Autocast type for every forward pass; None for float32.

    Raises:
        CheckpointError: The file cannot be read or does not fit the architecture.
        IncompatibleError: The network does not end in a linear layer.
        OptionError: Unknown architecture, device or preprocessing value.
    """
    target = find_device(device)
    read = read_checkpoint(checkpoint)
    architecture, source = resolve_architecture(
        read.tensors,
        read.config,
        arch=arch,
        factory=factory,
        model_args=model_kwargs,
        where=str(read.path),
    )
    net = freeze(architecture.build())
    attributes = _attributes(read.path) if read.sliced else {}
    if attributes:
        _shrink(net, read, architecture, attributes)
    else:
        if architecture.library == "transformers":
            read = replace(read, tensors=hugging_face.read_tensors(read.path.parent))
        _fill(net, read, architecture)
    prepared = _preprocessing(
        own_preprocessing(architecture, net), read.config, preprocessing or {}
    )
    head = find_head(net, prepared.input_size)
    classes = len(head.weight(net.state_dict()))
    return Subject(
        net=net.to(target),
        head=head,
        architecture=replace(architecture, num_classes=classes),
        preprocessing=prepared,
        label_names=_label_names(read.config, classes, read.path),
        path=read.path,
        sha256=read.sha256,
        config=read.config,
        amp_dtype=amp_dtype,
        hub_id=hugging_face.repository(checkpoint),
        notes=(source, *read.notes),
        attributes=attributes,
    )


def _attributes(path: Path) -> dict[str, dict[str, Any]]:
    """Read what a sliced network's record says beside its tensors."""
    record = path.parent / "surgeon.json"
    try:
        found = json.loads(record.read_text(encoding="utf-8"))["slice"]["attributes"]
        return {str(name): dict(values) for name, values in found.items()}
    except (ValueError, OSError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: was sliced, and {record.name} beside it cannot be read ({error}); keep "
            "the exported folder together"
        ) from error


def _shrink(
    net: nn.Module,
    read: Checkpoint,
    architecture: Architecture,
    attributes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put a sliced checkpoint's tensors into a network of the full size."""
    modules, own = dict(net.named_modules()), net.state_dict()
    wrong = [f"missing {name}" for name in own if name not in read.tensors]
    wrong += [
        f"unexpected {name}"
        for name in read.tensors
        if name not in own and not hasattr(modules.get(name.removesuffix(".bias")), "bias")
    ]
    wrong += [
        f"no whole number '{key}' in module '{name}'"
        for name, values in attributes.items()
        for key, value in values.items()
        if type(value) is not int or type(getattr(modules.get(name), key, None)) is not int
    ]
    if wrong:
        raise CheckpointError(
            f"{read.path}: {len(wrong)} entries do not fit {architecture}, sliced; keep "
            "surgeon.json and model.safetensors together, as they were exported",
            wrong,
        )
    shrink_(net, read.tensors, attributes)


def _fill(net: nn.Module, read: Checkpoint, architecture: Architecture) -> None:
    wrong = differences(net, read.tensors)
    if wrong:
        classes = architecture.num_classes
        raise CheckpointError(
            f"{read.path}: {len(wrong)} keys do not fit {architecture}"
            f"{f' with {classes} classes' if classes else ''}; check --arch and config.json",
            wrong,
        )
    net.load_state_dict({**net.state_dict(), **read.tensors})


def _preprocessing(
    own: Mapping[str, Any], config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Preprocessing:
    given = config.get("pretrained_cfg") or config.get("preprocessing") or {}
    if "preprocessor" in config:
        given = hugging_face.preprocessing(config["preprocessor"])
    needed = ("input_size", "mean", "std")
    missing = [k for k in needed if {**own, **given}.get(k) is None and overrides.get(k) is None]
    if missing:
        raise CheckpointError(
            f"preprocessing: {', '.join(missing)} not in the network or config.json; "
            f"pass {' '.join('--' + k.replace('_', '-') for k in missing)}"
        )
    return Preprocessing.from_config({**own, **given}, **overrides)


def _label_names(config: Mapping[str, Any], num_classes: int, path: Path) -> tuple[str, ...] | None:
    own: Any = config.get("pretrained_cfg") or {}
    names: Any = config.get("label_names") or own.get("label_names")
    names = names or hugging_face.label_names(config)
    if isinstance(names, Mapping):  # timm allows {class index: name}
        names = [names.get(str(i), names.get(i, str(i))) for i in range(num_classes)]
    if not names:
        return None
    if len(names) != num_classes:
        raise CheckpointError(
            f"{path.parent / 'config.json'}: found {len(names)} label_names, the head has "
            f"{num_classes} classes; correct the config"
        )
    return tuple(str(name) for name in names)
