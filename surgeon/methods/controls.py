"""Masks without search, at a given sparsity or a searched one's: what numbers are set against."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from surgeon.data import Data
from surgeon.edit import Edit, UnitMask
from surgeon.methods.base import Method, Progress, new_edit, with_recalibration
from surgeon.options import check_share
from surgeon.sites import weight_sites
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


def _evenly(subject: Subject, share: float) -> Edit:
    """Drop the same share of every layer, no matter which."""
    masks = {}
    for site in weight_sites(subject):
        number = math.prod(site.shape)
        masks[site.name] = (torch.arange(number) >= round(share * number)).reshape(site.shape)
    return new_edit(subject, "evenly", masks=masks)


@dataclass(frozen=True, kw_only=True)
class Control(Method):
    """Drop what scores lowest, layer by layer; nothing is learned but BatchNorm statistics."""

    sparsity: float = 0.5
    """Share of each layer's weights to drop, the head left alone."""
    like: Edit | None = None
    """An edit whose sparsity is matched instead, layer by layer, units as units."""
    recalibrate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)

    @abstractmethod
    def new_score(self) -> Score:
        """Make the score of one fit."""

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Rank every layer's weights or units."""
        like = self.like or _evenly(subject, self.sparsity)
        edit = _matched(subject, self.name, like, self.new_score())
        if self.recalibrate:
            edit = with_recalibration(subject, data, edit, seed=self.seed)
        return edit


@dataclass(frozen=True, kw_only=True)
class Magnitude(Control):
    """Drop the smallest weights, or the units of smallest norm, layer by layer."""

    name: ClassVar[str] = "magnitude"

    def new_score(self) -> Score:
        """Return the absolute value."""
        return torch.abs


@dataclass(frozen=True, kw_only=True)
class Random(Control):
    """Drop weights or units at random, layer by layer."""

    name: ClassVar[str] = "random"

    def new_score(self) -> Score:
        """Return seeded noise."""
        generator = torch.Generator().manual_seed(self.seed)
        return lambda values: torch.rand(values.shape, generator=generator)
