"""Training of all weights on the labelled rows; each method of the family brings its own loss."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.errors import OptionError
from surgeon.groups import Groups
from surgeon.methods.augmentation import Augmentation, harmless
from surgeon.methods.averaging import Average
from surgeon.methods.base import Method, Progress, new_edit, select_accuracy, select_loss
from surgeon.methods.regime import Balance, Regime
from surgeon.options import check_choice, check_least, check_positive
from surgeon.recalibrate import batch_statistics, recalibrate
from surgeon.subject import Subject, freeze

# Rows that the statistics of averaged weights are measured on.
_MEASURED = 2000
# How often the step is halved where a training breaks the network.
_HALVINGS = 3


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

        A training that breaks the network is followed by one of half the step, three times at most;
        of all their epochs the one of least loss on select rows is kept. A given `lr` and a
        published recipe are kept to.

        Raises:
            OptionError: The steps are so large that no epoch ends with finite logits.
        """
        regime, kept = self.settings(), _Kept()
        halvings = _HALVINGS if self.recipe == "default" and self.lr is None else 0
        while not self._train(subject, data, regime, kept, progress) and halvings:
            halvings -= 1
            regime = replace(regime, lr=regime.lr / 2)
        if not kept.tensors:
            raise OptionError(
                f"--lr: found {regime.lr:g}, the loss on select rows was finite after none of "
                f"{regime.epochs} epochs; use a smaller one"
            )
        weights = {name for name, _ in subject.net.named_parameters()}
        return new_edit(
            subject,
            self.name,
            updates={n: t for n, t in kept.tensors.items() if n in weights},
            buffers={n: t for n, t in kept.tensors.items() if n not in weights},
        )

    def _train(
        self,
        subject: Subject,
        data: Data,
        regime: Regime,
        kept: _Kept,
        progress: Progress | None,
    ) -> bool:
        """Run one training, leave its best epoch if none before was better; tell if it was sound.

        It was not where it ended nearer to knowing nothing of the target than to the best epoch.
        """
        objective = self.new_objective(subject, data)
        data = objective.data
        start = _untrained(subject, self.seed) if self.from_scratch else subject
        run = _Run(start, data, regime, self.seed, objective.draws)
        optimiser, schedule = regime.new_optimiser(run.weights)
        held_out, before, began = float("nan"), kept.epochs, time.perf_counter()
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
            kept.offer(held_out, now)
            if progress:
                each = (time.perf_counter() - began) / epoch
                progress(
                    {
                        "epoch": before + epoch,
                        "epochs": before + regime.epochs,
                        "lr": regime.lr,
                        "augmentation": str(run.augmentation),
                        **{name: float(total) / seen_rows for name, total in sums.items()},
                        "select_loss": held_out,
                        "select_balanced_accuracy": select_accuracy(logits, data.select.groups),
                        "seconds_left": each * (regime.epochs - epoch),
                    }
                )
        return held_out < (kept.loss + _ignorance(data.select.groups)) / 2


@dataclass(eq=False)
class _Kept:
    """The best epoch so far."""

    loss: float = float("inf")
    """On select rows."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Weights and statistics by name, on the CPU; empty before any finite loss."""
    epochs: int = 0
    """How many were offered."""

    def offer(self, loss: float, tensors: Mapping[str, Tensor]) -> None:
        """Take in an epoch."""
        self.epochs += 1
        if loss < self.loss:
            self.loss, self.tensors = loss, {n: t.cpu().clone() for n, t in tensors.items()}


def _ignorance(groups: Groups) -> float:
    """Return the loss, nats, of who knows how frequent the targets are, groups counting equally."""
    shares = torch.bincount(groups.target, groups.weights())
    return float(torch.special.entr(shares / shares.sum()).sum())


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
