"""Carry out an edit: fold it into the weights, and prove the result on real inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from surgeon.edit import Edit, kept_weights
from surgeon.errors import ArtefactError, IncompatibleError
from surgeon.subject import Subject

# Folding is exact but for the erasure, whose head is rounded to float32 once.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class LayerRow:
    """What an edit leaves of one layer."""

    name: str
    kind: str
    """Class of the module."""
    weights: int
    kept: int
    sparsity: float
    """Share of the layer's weights that the masks remove."""
    units: int
    dead_units: int
    """Units all of whose weights are removed, or that a unit gate switches off."""


@dataclass(frozen=True)
class Sparsity:
    """How much an edit removes."""

    gated: float | None
    """Pruned over gated weights; None for an edit without masks."""
    all: float | None
    """Pruned over all weights of the network."""
    units: float | None
    """Gated-off over gated units; None without unit masks."""


def check_base(subject: Subject, edit: Edit) -> None:
    """Refuse an edit made for another checkpoint.

    Raises:
        ArtefactError: The hashes differ.
    """
    if edit.base_sha256 != subject.sha256:
        raise ArtefactError(
            f"{subject.path}: found sha256 {subject.sha256[:12]}, the edit expects "
            f"{edit.base_sha256[:12]} ({edit.architecture}); give the checkpoint it was made from"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in subject.tensors().items()}
    changed = {**edit.masks, **edit.buffers, **edit.updates}
    wrong = [n for n, tensor in changed.items() if shapes.get(n) != tuple(tensor.shape)]
    for unit in edit.units.values():
        wrong += [
            fold.parameter
            for fold in unit.folds
            if shapes.get(fold.parameter, ())[fold.dim or 0 : (fold.dim or 0) + 1]
            != (len(unit.keep) * fold.block,)
        ]
    if wrong:
        raise IncompatibleError(
            f"{subject.path}: {len(wrong)} tensors of the edit are not in it, or have other "
            "shapes; load the checkpoint with the same --arch or --factory",
            wrong,
        )


def apply(subject: Subject, edit: Edit) -> Subject:
    """Carry out an edit: every shape stays, the base subject is left as it is.

    Args:
        subject: The base the edit was fitted on.
        edit: Masks, statistics, replaced tensors, erasure.

    Returns:
        A frozen copy with the edit folded into its weights.

    Raises:
        ArtefactError: The edit belongs to another checkpoint.
    """
    check_base(subject, edit)
    return subject.with_tensors(edit.changes(subject.tensors()))


@torch.no_grad()
def prove(subject: Subject, edit: Edit, folded: Subject, x: Tensor) -> float:
    """Compare the gated network, erasure applied to its features, with the folded one.

    Args:
        subject: The base.
        edit: The edit.
        folded: The network to be proved, for example read back from the exported file.
        x: `[n, 3, H, W]` preprocessed images.

    Returns:
        Largest difference of logits, relative to the largest logit.

    Raises:
        ArtefactError: It exceeds 1e-5.
    """
    plain, other = subject.to(subject.device), folded.to(subject.device)  # full precision
    gated = edit.without("erasure").changes(subject.tensors())
    features, logits = plain.forward(x, gated)
    if edit.erasure is not None:
        now = {**subject.head_tensors, **gated}
        erased = edit.erasure(features)
        logits = linear(erased, subject.head.weight(now), subject.head.bias_term(now))
    found = other.forward(x)[1]
    difference = float((found - logits).abs().max() / logits.abs().max().clamp_min(1e-12))
    if not difference <= _TOLERANCE:
        raise ArtefactError(
            f"export: folded and gated logits differ by {difference:.2g} relative, expected at "
            f"most {_TOLERANCE:g}; nothing was written, please report this"
        )
    return difference


def layer_rows(subject: Subject, edit: Edit) -> list[LayerRow]:
    """Tabulate what the masks leave of every convolution and linear layer, in module order."""
    kept, rows = kept_weights(edit.masks, edit.units, subject.tensors()), []
    for name, module in subject.net.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            every = torch.ones(module.weight.shape, dtype=torch.bool)
            rows.append(_layer_row(name, kind, kept.get(f"{name}.weight", every)))
        for parameter, _ in module.named_parameters(recurse=False):
            masked = f"{name}.{parameter}" if name else parameter
            # The packed projections of nn.MultiheadAttention belong to no module of their own.
            if parameter != "weight" and masked in edit.masks:
                rows.append(_layer_row(masked, kind, edit.masks[masked]))
    return rows


def _layer_row(name: str, kind: str, keep: Tensor) -> LayerRow:
    kept, dead = int(keep.sum()), int((~keep.flatten(1).any(1)).sum())
    return LayerRow(
        name, kind, keep.numel(), kept, 1 - kept / keep.numel(), units=len(keep), dead_units=dead
    )


def sparsity(subject: Subject, edit: Edit) -> Sparsity:
    """Count what the masks remove."""
    if not edit.masked:
        return Sparsity(None, None, None)
    masks = kept_weights(edit.masks, edit.units, subject.tensors()).values()
    pruned = sum(int((~mask).sum()) for mask in masks)
    units = [unit.keep for unit in edit.units.values()]
    return Sparsity(
        gated=pruned / sum(mask.numel() for mask in masks),
        all=pruned / sum(p.numel() for p in subject.net.parameters()),
        units=sum(int((~u).sum()) for u in units) / sum(map(len, units)) if units else None,
    )
