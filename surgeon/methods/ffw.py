"""FFW: search a mask over frozen weights that keeps the task and loses the bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.errors import OptionError
from surgeon.gates import GateSite, unit_sites, weight_sites
from surgeon.methods.base import (
    Method,
    Progress,
    device_changes,
    new_edit,
    select_loss,
    with_erasure,
    with_recalibration,
)
from surgeon.methods.refit import refit_head
from surgeon.methods.search import Recipe, Search
from surgeon.subject import Subject

Mode = Literal["unstructured", "structured"]


_DEFAULT = Recipe(
    gamma=0.5,
    lr=2e-2,
    epochs=40,
    batch_size=50,
    batches=16,
    cosine=True,
    initial=0.1,
    hard=True,
    head_lr=1e-2,
    head_steps=3,
)
# Units closed by the structured search.
_UNITS_OFF = 0.3
_PAPER = Recipe(
    gamma=10,
    lr=1e-3,
    epochs=200,
    refit_bias_head=True,
    standardise=False,
    batch_statistics=False,
    own_output=True,
    keep_best=False,
    balance="none",
    recalibrate=False,
    erase_head=False,
)
_CHOICES = {
    "mode": ("unstructured", "structured"),
    "recipe": ("default", "paper"),
    "balance": ("groups", "none"),
}
_LEAST = {"gamma": 0, "epochs": 1, "batch_size": 2}


@dataclass(frozen=True, kw_only=True)
class FFW(Method):
    """Search a mask over the frozen encoder's weights (eq. 8) or units (eq. 9).

    Objective (eq. 10): cross-entropy + gamma times the mean over biases of the normalised mutual
    information between the bias and what a linear bias head reads off the bottleneck. None takes
    the recipe's own value.

    Source:
        Nahon and others, Debiasing surgeon: fantastic weights and how to find them, ECCV 2024.
        `recipe="paper"` follows its text. By default gates are hard with a pass-through gradient,
        the head is trained beside them, BatchNorm uses batch statistics and is recalibrated, the
        epoch of least objective on select rows is kept, and a closed-form erasure is folded into
        the head. Structured masks close 30 % of the units on the way and mask single weights of
        the others too. Where a new head on the unmasked encoder has the smaller loss on select
        rows, that is the edit, and it has no mask, unless gamma was given.
    """

    name: ClassVar[str] = "ffw"

    mode: Mode = "unstructured"
    recipe: Literal["default", "paper"] = "default"
    gamma: float | None = None
    """Weight of the bias term (paper: 10)."""
    epochs: int | None = None
    """Upper bound on epochs (paper: 200)."""
    lr: float | None = None
    """Adam step on gate logits (paper: 1e-3)."""
    batch_size: int | None = None
    """Rows per gate step (paper: 100)."""
    gate_head: bool = False
    """Gate the head's weights too (unstructured only)."""
    balance: Literal["groups", "none"] | None = None
    """Draw groups equally often, or rows as they come (paper: none)."""
    recalibrate: bool | None = None
    """Carry recalibrated BatchNorm statistics (paper: no)."""
    erase_head: bool | None = None
    """Fold the closed-form erasure into the head (paper: no)."""
    refit_head: bool = False
    """End with last-layer retraining on the masked features."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (found := getattr(self, name)) not in (*choices, None):
                raise OptionError(f"--{name}: found '{found}', expected {' or '.join(choices)}")
        for name, least in _LEAST.items():
            found = getattr(self, name)
            if found is not None and not least <= found < math.inf:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag}: found {found}, expected {least} or more")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise OptionError(f"--lr: found {self.lr}, expected more than 0")
        if self.gate_head and self.mode == "structured":
            raise OptionError(
                "--gate-head: found --mode structured, expected unstructured; the outputs of the "
                "head are the classes and cannot be pruned"
            )

    def settings(self) -> Recipe:
        """Return the recipe with this configuration's own values put in."""
        recipe = _PAPER if self.recipe == "paper" else _DEFAULT
        if self.recipe == "default" and self.mode == "structured":
            recipe = replace(recipe, units_off=_UNITS_OFF)
        if self.gate_head:
            recipe = replace(recipe, head_lr=None)
        if self.batch_size is not None:
            recipe = replace(recipe, batches=1)
        given = {
            name: value
            for name in (
                "gamma",
                "epochs",
                "lr",
                "batch_size",
                "balance",
                "recalibrate",
                "erase_head",
            )
            if (value := getattr(self, name)) is not None
        }
        return replace(recipe, **given)

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Search the mask on fit rows, choose on select rows, and finish the edit."""
        settings = self.settings()
        search = Search(subject, data, self.sites(subject), settings, seed=self.seed)
        search.run(progress)
        edit = new_edit(
            subject,
            self.name,
            masks=search.gates.masks(),
            units=search.gates.units(),
            updates=search.trained_head(),
        )
        if settings.recalibrate:
            edit = with_recalibration(subject, data, edit, seed=self.seed, balance=settings.balance)
        if self.refit_head:
            overrides = device_changes(subject, edit)
            edit = replace(edit, updates=refit_head(subject, data, overrides=overrides))
        if settings.keep_best and self.gamma is None and subject.head.bias is not None:
            edit = self._better(subject, data, edit)
        if settings.erase_head:
            edit = with_erasure(subject, data, edit)
        return edit

    def sites(self, subject: Subject) -> list[GateSite]:
        """List where the gates sit."""
        settings = self.settings()
        if self.mode == "unstructured":
            return weight_sites(subject, gate_head=self.gate_head)
        units = unit_sites(subject, own_output=settings.own_output)
        return units if settings.units_off is None else [*weight_sites(subject), *units]

    def _better(self, subject: Subject, data: Data, masked: Edit) -> Edit:
        """Return the masked network, or a new head alone if its loss on select rows is smaller."""
        alone = new_edit(subject, self.name, updates=refit_head(subject, data))

        def loss(edit: Edit) -> float:
            outputs = extract(subject, data.select, overrides=device_changes(subject, edit))
            return select_loss(outputs.logits, data.select.groups)

        return alone if loss(alone) < loss(masked) else masked
