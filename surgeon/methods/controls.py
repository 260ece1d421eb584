"""Masks without search, at the sparsity of a searched one: what the numbers are set against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from surgeon.data import Data
from surgeon.edit import Edit, UnitMask
from surgeon.methods.base import Method, Progress, new_edit, with_recalibration
from surgeon.subject import Subject

Score = Callable[[Tensor], Tensor]


def _matched(subject: Subject, method: str, like: Edit, score: Score) -> Edit:
    """Drop the lowest-scoring weights or units of each layer, as many as `like` drops there.

    In a layer that has both, weights of dropped units are left out of the count, there and here.
    """
    tensors = subject.tensors()

    def keep(values: Tensor, dropped: int) -> Tensor:
        order = values.reshape(-1).argsort(stable=True)
        kept = torch.ones(values.numel(), dtype=torch.bool)
        kept[order[:dropped].cpu()] = False
        return kept.reshape(values.shape)

    units = {
        n: UnitMask(
            keep(score(tensors[f"{n}.weight"].flatten(1).norm(dim=1)), int((~u.keep).sum())),
            u.folds,
        )
        for n, u in like.units.items()
    }
    masks = {}
    for name, mask in like.masks.items():
        scores, module = score(tensors[name]), name.removesuffix(".weight")
        if module in units:
            mask = mask[like.units[module].keep]
            scores = scores.clone()
            scores[~units[module].keep] = torch.inf
        masks[name] = keep(scores, int((~mask).sum()))
    return new_edit(subject, method, masks=masks, units=units)


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """Drop the smallest weights, or the units of smallest norm, layer by layer."""

    name: ClassVar[str] = "magnitude"

    like: Edit
    """The edit whose per-layer sparsity is matched."""
    recalibrate: bool = True
    seed: int = 0

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Rank by absolute value; nothing is learned but BatchNorm statistics."""
        edit = _matched(subject, self.name, self.like, torch.abs)
        if self.recalibrate:
            edit = with_recalibration(subject, data, edit, seed=self.seed)
        return edit


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Drop weights or units at random, layer by layer."""

    name: ClassVar[str] = "random"

    like: Edit
    """The edit whose per-layer sparsity is matched."""
    recalibrate: bool = True
    seed: int = 0

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Rank by seeded noise; nothing is learned but BatchNorm statistics."""
        generator = torch.Generator().manual_seed(self.seed)
        edit = _matched(
            subject,
            self.name,
            self.like,
            lambda values: torch.rand(values.shape, generator=generator),
        )
        if self.recalibrate:
            edit = with_recalibration(subject, data, edit, seed=self.seed)
        return edit
