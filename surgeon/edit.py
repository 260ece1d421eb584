"""The value a method returns: what to change in a frozen network, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.checkpoint import read_safetensors, write_safetensors
from surgeon.errors import ArtefactError, CheckpointError
from surgeon.head import Head

VERSION = 1


@dataclass(frozen=True)
class Fold:
    """Name the slices of one parameter that a gate multiplies."""

    parameter: str
    dim: int | None
    """Dimension the units run along; None for one gate per element."""
    block: int = 1
    """Neighbouring slices that one gate multiplies: a head of an attention has several."""

    def scale(self, tensor: Tensor, factor: Tensor) -> Tensor:
        """Multiply the slices of `tensor` by `factor`, `[U]` or of the tensor's own shape."""
        if self.dim is None:
            return tensor * factor
        shape = [1] * tensor.dim()
        shape[self.dim] = -1
        return tensor * _repeated(factor, self.block).reshape(shape)


@dataclass(frozen=True, eq=False)
class UnitMask:
    """Keep or drop whole units of one module."""

    keep: Tensor
    """`[U]` bool, True keeps."""
    folds: tuple[Fold, ...]
    """Where a dropped unit is zeroed."""

    def rows(self, n: int) -> Tensor:
        """Return `[n]` bool, which of the module's weight rows are kept.

        A unit of several rows has them side by side; a layer that makes queries, keys and values
        has the rows of all heads one after the other for each of the three.
        """
        own = _repeated(self.keep, self.folds[0].block)
        return own.repeat(n // len(own))


def _repeated(x: Tensor, block: int) -> Tensor:
    return x if block == 1 else x.repeat_interleave(block)


def kept_weights(
    masks: Mapping[str, Tensor], units: Mapping[str, UnitMask], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put masks of weights and of units together, so that what both drop counts once.

    Args:
        masks: As in `Edit`.
        units: As in `Edit`.
        tensors: The base's parameters by name.

    Returns:
        Parameter name to bool mask of its shape, for everything that has gates.
    """
    kept = dict(masks)
    for module, unit in units.items():
        name = f"{module}.weight"
        shape = tensors[name].shape
        rows = unit.rows(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        kept[name] = rows & kept[name] if name in kept else rows
    return kept


@dataclass(frozen=True, eq=False)
class Erasure:
    """The affine map r(z) = z - left right (z - mean), rank k.

    Source: Belrose and others, LEACE, 2023, theorem 4.2.
    """

    left: Tensor
    """`[D, k]` float64."""
    right: Tensor
    """`[k, D]` float64."""
    mean: Tensor
    """`[D]` float64."""

    def __call__(self, features: Tensor) -> Tensor:
        """Map `[N, D]` bottleneck features to what the head sees, in their own dtype."""
        centred = features.double() - self.mean.to(features.device)
        removed = centred @ self.right.T.to(features.device) @ self.left.T.to(features.device)
        return (features.double() - removed).to(features.dtype)

    def fold(self, weight: Tensor, bias_term: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fold into a head `[C, D]`, `[C]`, so that the new head on z equals the old on r(z)."""
        a = weight.double()
        left, right, mean = (t.to(weight.device) for t in (self.left, self.right, self.mean))
        removed = (a @ left) @ right
        old = a.new_zeros(len(a)) if bias_term is None else bias_term.double()
        return (a - removed).to(weight.dtype), (old + removed @ mean).to(weight.dtype)


@dataclass(frozen=True, eq=False)
class Edit:
    """A frozen description of an operation, bound to its base by hash.

    Carried out in this order: masks and units, buffers, updates, erasure. Any part may be empty.
    """

    base_sha256: str
    architecture: str
    method: str
    head: Head
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameter name to bool mask of its shape, True keeps."""
    units: Mapping[str, UnitMask] = field(default_factory=dict)
    """Module name to unit mask."""
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    """Recalibrated normalisation statistics by name."""
    updates: Mapping[str, Tensor] = field(default_factory=dict)
    """Replaced parameters by name."""
    erasure: Erasure | None = None

    @property
    def masked(self) -> bool:
        """Whether it masks any weights or units."""
        return bool(self.masks or self.units)

    def without(self, *parts: str) -> Edit:
        """Copy the edit with some of `masks`, `units`, `buffers`, `updates`, `erasure` left out."""
        empty: dict[str, Any] = {part: None if part == "erasure" else {} for part in parts}
        return replace(self, **empty)

    def changes(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the tensors that differ once the edit is carried out.

        Args:
            tensors: The base's parameters and buffers by name.

        Returns:
            New values by name; tensors that the edit does not touch are absent.
        """
        new: dict[str, Tensor] = {}

        def current(name: str) -> Tensor:
            return new.get(name, tensors[name])

        for name, mask in self.masks.items():
            new[name] = torch.where(mask.to(tensors[name].device), current(name), 0.0)
        for unit in self.units.values():
            for fold in unit.folds:
                value = current(fold.parameter)
                keep = fold.scale(torch.ones_like(value), unit.keep.to(value))
                new[fold.parameter] = torch.where(keep > 0, value, 0.0)
        for name, value in {**self.buffers, **self.updates}.items():
            new[name] = value.to(tensors[name])
        if self.erasure is not None:
            now = {**tensors, **new}
            self.head.check(now, "an erasure")
            folded = self.erasure.fold(self.head.weight(now), self.head.bias_term(now))
            new |= self.head.replaced(*folded, now)
        return new

    def save(self, path: Path) -> None:
        """Write `edit.safetensors`: the same edit gives the same bytes."""
        tensors = {f"mask.{name}": pack(mask) for name, mask in self.masks.items()}
        tensors |= {f"unit.{name}": pack(unit.keep) for name, unit in self.units.items()}
        tensors |= {f"buffer.{name}": value for name, value in self.buffers.items()}
        tensors |= {f"update.{name}": value for name, value in self.updates.items()}
        if self.erasure is not None:
            tensors |= {f"erasure.{k}": getattr(self.erasure, k) for k in ("left", "right", "mean")}
        shapes = {f"mask.{name}": list(mask.shape) for name, mask in self.masks.items()}
        shapes |= {f"unit.{name}": list(unit.keep.shape) for name, unit in self.units.items()}
        record = {
            "version": VERSION,
            "base_sha256": self.base_sha256,
            "architecture": self.architecture,
            "method": self.method,
            "shapes": shapes,
            "parts": {
                "head": list(self.head.modules),
                "units": {
                    name: [_fold_entry(fold) for fold in unit.folds]
                    for name, unit in self.units.items()
                },
            },
        }
        header = {"format": "pt", "surgeon.edit": json.dumps(record, sort_keys=True)}
        write_safetensors(path, tensors, header)

    @staticmethod
    def load(path: str | Path) -> Edit:
        """Read an edit.

        Raises:
            ArtefactError: The file is not an edit, or one of a later version.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtefactError(f"{path}: no such file; give an edit.safetensors")
        try:
            tensors, metadata = read_safetensors(path)
            record = json.loads(metadata["surgeon.edit"])
            version = record["version"]
            if version == VERSION:
                return _rebuild(tensors, record)
        except (OSError, LookupError, ValueError, TypeError, CheckpointError) as error:
            raise ArtefactError(
                f"{path}: not an edit ({error}); expected edit.safetensors"
            ) from error
        raise ArtefactError(
            f"{path}: edit of version {version}, this surgeon reads {VERSION}; update it"
        )


def _fold_entry(fold: Fold) -> list[Any]:
    return [fold.parameter, fold.dim, *([fold.block] if fold.block > 1 else [])]


def _rebuild(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Edit:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    shapes, folds = record["shapes"], record["parts"]["units"]
    head = record["parts"]["head"]  # of one module, a name, in files of earlier versions
    return Edit(
        base_sha256=record["base_sha256"],
        architecture=record["architecture"],
        method=record["method"],
        head=Head((head,) if isinstance(head, str) else tuple(head)),
        masks={n: unpack(t, shapes[f"mask.{n}"]) for n, t in parts.get("mask", {}).items()},
        units={
            n: UnitMask(unpack(t, shapes[f"unit.{n}"]), tuple(Fold(*f) for f in folds[n]))
            for n, t in parts.get("unit", {}).items()
        },
        buffers=parts.get("buffer", {}),
        updates=parts.get("update", {}),
        erasure=Erasure(**parts["erasure"]) if "erasure" in parts else None,
    )


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor into uint8, flattened, little bit order."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))


def unpack(packed: Tensor, shape: list[int]) -> Tensor:
    """Undo `pack`."""
    bits = np.unpackbits(packed.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(bits.astype(bool)).reshape(shape)
