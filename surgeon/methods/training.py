"""Training of all weights on the labelled rows; each method of the family brings its own loss."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from timm.optim import Lamb
from torch import Tensor
from torch.nn.functional import linear
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.errors import OptionError
from surgeon.methods.augmentation import Augmentation, harmless
from surgeon.methods.averaging import Average
from surgeon.methods.base import Method, Progress, new_edit, select_accuracy, select_loss
from surgeon.options import check_choice, check_least, check_positive
from surgeon.recalibrate import batch_statistics, recalibrate
from surgeon.subject import Subject, freeze

Balance = Literal["groups", "none"]

# Rows that the statistics of averaged weights are measured on.
_MEASURED = 2000


@dataclass(frozen=True, eq=False)
class Pass:
    """One batch on its way through the network, differentiable in the weights that are trained."""

    rows: Tensor
    """`[n]` int64 on the CPU, positions among the fit rows."""
    features: Tensor
    """`[n, D]`, the bottleneck."""
    logits: Tensor
    """`[n, C]`."""
    head: Callable[[Tensor], Tensor]
    """Takes features `[n, D]` to logits `[n, C]`: the head as it is being trained."""
    passed: float
    """Share of the training that is over, 0 to 1."""


Loss = Callable[[Pass], tuple[Tensor, Mapping[str, Tensor]]]
"""Gives a scalar for the network to lower, and figures for the record, scalars without gradient.

What a loss trains beside the network it trains on detached features, before it returns; in the
scalar it is a constant.
"""


@dataclass(frozen=True, eq=False)
class Objective:
    """What one fit lowers, and what it chooses by."""

    loss: Loss
    data: Data
    """The rows, with the groups that drawing and choosing may know."""
    draws: Tensor | None = None
    """`[N]`, how often each fit row is drawn, in proportion; None: as the regime balances."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How weights are stepped.

    By default in large steps, a share of the weights each (LAMB), in one cycle: a network that
    reads the bias alone is left behind. Such steps go to and fro about what is good; what is taken
    is an average.
    """

    optimiser: Literal["adam", "lamb", "sgd"] = "lamb"
    """SGD has momentum 0.9; LAMB's step is a share of the weights of a tensor."""
    lr: float = 0.02
    weight_decay: float = 0.0
    warm_up: float = 0.3
    """Share of the training in which the step grows to `lr`."""
    milestones: tuple[float, ...] | None = None
    """Shares of the training after which the step falls to a tenth, without a warm-up; None: along
    a half cosine."""
    average: float = 2.0
    """Epochs that the weights are averaged over (exponentially); 0: the last step's are taken."""
    epochs: int = 40
    batch_size: int = 50
    epoch_rows: int | None = 5000
    """Rows of an epoch at most, drawn anew for each; None: all."""
    balance: Balance = "groups"
    augment: bool = True
    """Mirror and shift rows where the given network does not mind, as in the mask search."""

    def rows_of(self, num: int) -> int:
        """Return how many rows an epoch draws from `num`."""
        return min(num, self.epoch_rows or num)

    def new_optimiser(self, weights: Mapping[str, Tensor]) -> tuple[Optimizer, LRScheduler]:
        """Make the optimiser and its schedule over epochs."""
        lr, decay, values = self.lr, self.weight_decay, weights.values()
        if self.optimiser == "adam":
            made = Adam(values, lr=lr, weight_decay=decay, fused=True)
        elif self.optimiser == "lamb":
            made = Lamb(values, lr=lr, weight_decay=decay, always_adapt=True)
        else:
            made = SGD(values, lr=lr, weight_decay=decay, momentum=0.9)
        if self.milestones:
            return made, MultiStepLR(made, [round(m * self.epochs) for m in self.milestones])
        if self.warm_up:
            return made, OneCycleLR(made, self.lr, self.epochs, pct_start=self.warm_up)
        return made, CosineAnnealingLR(made, self.epochs)


@dataclass(frozen=True, kw_only=True)
class Training(Method):
    """Train every parameter, and keep the epoch of least loss on select rows (`select_loss`).

    None takes the regime's own value.
    """

    default: ClassVar[Regime] = Regime()
    paper: ClassVar[Regime | None] = None
    """The published one, where there is one."""

    recipe: Literal["default", "paper"] = "default"
    lr: float | None = None
    """Largest step."""
    epochs: int | None = None
    batch_size: int | None = None
    """Rows per step."""
    balance: Balance | None = None
    """Draw groups equally often, or rows as they come."""
    from_scratch: bool = False
    """Train new weights of the same architecture instead of the given ones, as published recipes
    may; the given network only tells what a method asks it."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, ("default", "paper"))
        check_positive("lr", self.lr)
        check_least("epochs", self.epochs, 1)
        check_least("batch_size", self.batch_size, 2)
        check_choice("balance", self.balance, ("groups", "none"))
        if self.recipe == "paper" and self.paper is None:
            raise OptionError(f"--recipe: found 'paper', which {self.name} has none of")
        if self.from_scratch and self.recipe != "paper":
            raise OptionError("--from-scratch: found with --recipe default, expected paper")

    def settings(self) -> Regime:
        """Return the regime with this configuration's own values put in."""
        own = self.paper if self.recipe == "paper" and self.paper else self.default
        names = {field.name for field in fields(self)} & {field.name for field in fields(own)}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(own, **given)

    @abstractmethod
    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Make the objective of one fit, with whatever state it keeps from step to step."""

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Train copies of the weights; the subject's own stay frozen.

        Raises:
            OptionError: The steps are so large that no epoch ends with finite logits.
        """
        regime, objective = self.settings(), self.new_objective(subject, data)
        data = objective.data
        start = _untrained(subject, self.seed) if self.from_scratch else subject
        run = _Run(start, data, regime, self.seed, objective.draws)
        optimiser, schedule = regime.new_optimiser(run.weights)
        best, kept, began = float("inf"), {}, time.perf_counter()
        for epoch in range(1, regime.epochs + 1):
            sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=subject.device))
            seen_rows = 0
            with batch_statistics(start) as buffers:
                for seen in run.passes(epoch, buffers):
                    loss, figures = objective.loss(seen)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    if run.average:
                        run.average.follow()
                    seen_rows += len(seen.rows)
                    for name, value in {"task_loss": loss.detach(), **figures}.items():
                        sums[name] += value * len(seen.rows)
            schedule.step()
            now = run.reached(buffers)
            logits = extract(start, data.select, overrides=now).logits
            held_out = select_loss(logits, data.select.groups)
            if held_out < best:
                best, kept = held_out, {n: t.cpu().clone() for n, t in now.items()}
            if progress:
                each = (time.perf_counter() - began) / epoch
                progress(
                    {
                        "epoch": epoch,
                        "epochs": regime.epochs,
                        "augmentation": str(run.augmentation),
                        **{name: float(total) / seen_rows for name, total in sums.items()},
                        "select_loss": held_out,
                        "select_balanced_accuracy": select_accuracy(logits, data.select.groups),
                        "seconds_left": each * (regime.epochs - epoch),
                    }
                )
        if not kept:
            raise OptionError(
                f"--lr: found {regime.lr:g}, the loss on select rows was finite after none of "
                f"{regime.epochs} epochs; use a smaller one"
            )
        return new_edit(
            subject,
            self.name,
            updates={n: t for n, t in kept.items() if n in run.weights},
            buffers={n: t for n, t in kept.items() if n not in run.weights},
        )


def _untrained(subject: Subject, seed: int) -> Subject:
    """Return the same architecture with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = subject.architecture.build()
    return replace(subject, net=freeze(net.to(subject.device)))


class _Run:
    """One training: copies of the weights, and the batches that pass through them."""

    def __init__(
        self, subject: Subject, data: Data, regime: Regime, seed: int, draws: Tensor | None
    ) -> None:
        self.subject, self.data, self.regime, self.draws = subject, data, regime, draws
        self.weights = {
            name: value.detach().clone().requires_grad_()
            for name, value in subject.net.named_parameters()
        }
        self.generator = torch.Generator().manual_seed(seed)
        self.augmentation = harmless(subject, data, seed=seed) if regime.augment else Augmentation()
        steps = regime.average * regime.rows_of(len(data.fit)) / regime.batch_size
        self.average = Average(self.weights, steps) if steps else None

    def passes(self, epoch: int, buffers: Mapping[str, Tensor]) -> Iterator[Pass]:
        """Go through one epoch, counted from 1."""
        regime, done = self.regime, 0
        order = self._drawn(regime.epoch_rows)
        for rows, x in self._batches(order):
            features, logits = self.subject.forward(x, {**self.weights, **buffers})
            passed = (epoch - 1 + done / len(order)) / regime.epochs
            yield Pass(rows, features, logits, self._head, passed)
            done += len(rows)

    def reached(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights and BatchNorm statistics after an epoch that left these buffers."""
        if not self.average:
            return {n: t.detach() for n, t in {**self.weights, **buffers}.items()}
        averaged = self.average.tensors
        images = (x for _, x in self._batches(self._drawn(_MEASURED)))
        return {**averaged, **recalibrate(self.subject, images, averaged)}

    def _drawn(self, num: int | None) -> Tensor:
        """Draw `num` rows at most, None: as many as there are."""
        if self.draws is None:
            return self.data.fit.balanced_order(self.generator, self.regime.balance)[:num]
        return self.data.fit.weighted_order(self.generator, self.draws)[:num]

    def _batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, x in self.data.fit.in_batches(order, self.regime.batch_size):
            yield rows, self.augmentation(x, self.generator)

    def _head(self, features: Tensor) -> Tensor:
        head = self.subject.head
        return linear(features, head.weight(self.weights), head.bias_term(self.weights))
