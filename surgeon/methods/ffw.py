"""FFW: search a mask over frozen weights that keeps the task and loses the bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.errors import OptionError
from surgeon.methods.augmentation import harmless
from surgeon.methods.base import (
    Method,
    Progress,
    device_changes,
    new_edit,
    select_loss,
    with_erasure,
    with_recalibration,
)
from surgeon.methods.refit import with_new_head
from surgeon.methods.search import Recipe, Search
from surgeon.options import check_choice, check_least, check_positive
from surgeon.sites import GateSite, bottleneck_sites, module_sites, unit_sites, weight_sites
from surgeon.subject import Subject

Mode = Literal["unstructured", "structured"]


_DEFAULT = Recipe(
    gamma=0.1,
    scatter=0.5,
    within=0.2,
    lr=2e-2,
    epochs=40,
    batch_size=50,
    batches=16,
    cosine=True,
    warm_up=0.1,
    initial=0.1,
    hard=True,
    head_lr=1e-2,
    units_off=0.75,
)
# Of all units, not of the bottleneck's alone.
_STRUCTURED = replace(_DEFAULT, units_off=0.4)
_PAPER = Recipe(
    gamma=10,
    lr=1e-3,
    epochs=200,
    bias_heads=True,
    refit_bias_heads=True,
    batch_statistics=False,
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

    Objective: cross-entropy + gamma times the mean over biases of the normalised HSIC between the
    bias and the bottleneck + 0.2 times the same of the bottleneck less its class means + 0.5 times
    the share of its variance that lies within classes. The paper's (eq. 10) has the mutual
    information of the bias and what a linear head reads instead, and no more. None takes the
    recipe's own value.

    Source:
        Nahon and others, Debiasing surgeon: fantastic weights and how to find them, ECCV 2024.
        `recipe="paper"` follows its text. By default gates are hard with a pass-through gradient,
        the head is trained beside them after a warm-up, BatchNorm uses batch statistics and is
        recalibrated, rows are mirrored and shifted where the network does not mind
        (`surgeon.methods.augmentation`), the epoch of least objective on select rows is kept, and a
        closed-form erasure is folded into the head. Units close on the way: 75 % of those that make
        the features, one each, where there are such, and in structured masks 40 % of all, but as
        many features stay as leave twice the directions of classes and biases; single weights of
        the others are masked. Of this edit, the same with a head refitted behind the erasure, and
        such a head on the unmasked encoder (unless gamma was given) the one of least loss on select
        rows is returned.
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
    """Fold the closed-form erasure into the head; by default where it fits in (paper: no)."""
    refit_head: bool | None = None
    """End with last-layer retraining on what the head is given; by default where that has the
    smaller loss on select rows (paper: no)."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, least in _LEAST.items():
            check_least(name, getattr(self, name), least)
        check_positive("lr", self.lr)
        if self.gate_head and self.refit_head:
            raise OptionError("--refit-head: found with --gate-head, expected one of the two")
        if self.gate_head and self.mode == "structured":
            raise OptionError(
                "--gate-head: found --mode structured, expected unstructured; the outputs of the "
                "head are the classes and cannot be pruned"
            )

    def settings(self) -> Recipe:
        """Return the recipe with this configuration's own values put in."""
        default = _DEFAULT if self.mode == "unstructured" else _STRUCTURED
        recipe = _PAPER if self.recipe == "paper" else default
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
        if self.erase_head:
            subject.head.check(subject.head_tensors, "an erasure")
        settings = replace(settings, erase_head=settings.erase_head and subject.head_is_free)
        augmentation = None if self.recipe == "paper" else harmless(subject, data, seed=self.seed)
        search = Search(
            subject,
            data,
            self.sites(subject),
            settings,
            augmentation=augmentation,
            seed=self.seed,
        )
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
        if settings.erase_head:
            edit = with_erasure(subject, data, edit)
        return self._with_best_head(subject, data, edit, settings)

    def _with_best_head(self, subject: Subject, data: Data, masked: Edit, settings: Recipe) -> Edit:
        """Return the edit of least loss on select rows: with its own head, a new one, no mask."""

        def loss(edit: Edit) -> float:
            outputs = extract(subject, data.select, overrides=device_changes(subject, edit))
            return select_loss(outputs.logits, data.select.groups)

        if self.refit_head:
            return with_new_head(subject, data, masked)
        if not settings.keep_best or not subject.head_is_free:
            return masked
        found = [masked]
        if self.refit_head is None and not self.gate_head:
            found.append(with_new_head(subject, data, masked))
        if self.gamma is None:
            alone = new_edit(subject, self.name)
            alone = with_erasure(subject, data, alone) if settings.erase_head else alone
            found.append(with_new_head(subject, data, alone))
        return min(found, key=loss)

    def sites(self, subject: Subject) -> list[GateSite]:
        """List where the gates sit."""
        structured = self.mode == "structured"
        if self.recipe == "paper" and structured:
            return module_sites(subject, own_output=True)
        weights = weight_sites(subject, gate_head=self.gate_head)
        if self.recipe == "paper":
            return weights
        return [*weights, *(unit_sites(subject) if structured else bottleneck_sites(subject))]
