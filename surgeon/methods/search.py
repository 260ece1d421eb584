"""The search for a mask over frozen weights: gates, head, bias term, choice of epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from surgeon.data import Data, Outputs, Rows, extract
from surgeon.dependence import hsic, scatter, within_classes
from surgeon.gates import Gates
from surgeon.methods.augmentation import Augmentation
from surgeon.methods.base import Progress, gather_biases, select_accuracy, select_loss
from surgeon.methods.bias_term import BiasTerm, Dependence, HeadInformation
from surgeon.methods.closing import UnitClosing
from surgeon.recalibrate import batch_statistics
from surgeon.sites import GateSite, bottleneck_sites
from surgeon.subject import Subject

# BatchNorm needs some rows for its statistics.
_LEAST_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of the search that belong together."""

    gamma: float
    """Weight of the bias term."""
    bias_heads: bool = False
    """Read the biases with trained heads instead of HSIC."""
    scatter: float = 0.0
    """Weight of the features' scatter within classes, in rows whose bias tells no class."""
    within: float = 0.0
    """Weight of what the biases have to do with that scatter (HSIC)."""
    lr: float
    """Adam step on the gate logits."""
    epochs: int
    """At most this many."""
    batch_size: int = 100
    batches: int = 1
    """Batches of an epoch at least: few rows come in smaller batches."""
    initial: float = 0.0
    """Gate logit at the start."""
    head_lr: float | None = None
    """Adam step on the head, trained beside the gates; None leaves the head as it is."""
    units_off: float | None = None
    """Share of the gated units to close on the way, in unit gates beside weight gates."""
    cosine: bool = False
    """Let the step size fall to zero along a half cosine."""
    warm_up: float = 0.0
    """Share of the search over which the step size rises from zero."""
    hard: bool = False
    """0/1 gates in the forward pass instead of soft ones."""
    refit_bias_heads: bool = False
    """Refit the bias heads on cached features before every epoch."""
    batch_statistics: bool = True
    """BatchNorm normalises with batch statistics while fitting."""
    factor: float = 0.5
    """Temperature multiplier on a plateau of the select objective."""
    patience: int = 5
    """Epochs without progress before the temperature falls."""
    plateau: float = 0.05
    """Relative progress that counts."""
    agreement: float = 0.999
    """Stop when soft and hard predictions agree on this share of select rows."""
    keep_best: bool = True
    """Return the epoch of least objective on select rows instead of the last."""
    balance: str = "groups"
    """Draw groups equally often, or rows as they come."""
    recalibrate: bool = True
    erase_head: bool = True


class Search:
    """The state of one search: gates, head, bias term, optimiser, temperature."""

    def __init__(
        self,
        subject: Subject,
        data: Data,
        sites: Sequence[GateSite],
        settings: Recipe,
        *,
        augmentation: Augmentation | None = None,
        seed: int,
    ) -> None:
        self.subject, self.data, self.settings = subject, data, settings
        self.augmentation = augmentation or Augmentation()
        self.gates = Gates(subject, sites, initial=settings.initial, hard=settings.hard)
        self.batch_size = _batch_size(len(data.fit), settings)
        self.generator = torch.Generator().manual_seed(seed)
        self.head = self._trained_head()
        self.bias_term = self._new_bias_term()
        self.scatter_weight = settings.scatter and settings.scatter * (1 - self._bound())
        self._batches = max(1, -(-len(data.fit) // self.batch_size))
        moved, closed = self._split_gates()
        self.closing = self._new_closing(closed) if closed else None
        groups = [{"params": [self.gates.logits[i] for i in moved], "lr": settings.lr}]
        if self.head:
            groups.append({"params": [*self.head.values()], "lr": settings.head_lr})
        self.optimiser = torch.optim.Adam(groups, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._pace)
        self._best_objective, self._waited = float("inf"), 0

    def _split_gates(self) -> tuple[list[int], list[int]]:
        """Tell sites whose gates the optimiser moves from those of units closed one by one."""
        sites = self.gates.sites
        if self.settings.units_off is None:
            return list(range(len(sites))), []
        whole = [i for i, site in enumerate(sites) if site.folds[0].dim is None]
        return whole, [i for i, site in enumerate(sites) if site.folds[0].dim is not None]

    def _new_closing(self, closed: Sequence[int]) -> UnitClosing:
        """Close no more features than leave twice the directions of classes and biases."""
        groups, makers = self.data.fit.groups, {s.name for s in bottleneck_sites(self.subject)}
        directions = groups.num_classes - 1 + sum(groups.num_values(k) - 1 for k in groups.fitted)
        least = [2 * directions * (self.gates.sites[i].name in makers) for i in closed]
        return UnitClosing(
            [self.gates.logits[i] for i in closed], self.settings.units_off or 0.0, least
        )

    def _trained_head(self) -> dict[str, Tensor]:
        if self.settings.head_lr is None:
            return {}
        tensors = self.subject.tensors()
        names = self.subject.head.parameters(tensors)
        return {name: tensors[name].detach().clone().requires_grad_() for name in names}

    def _new_bias_term(self) -> BiasTerm:
        if not self.settings.bias_heads:
            return Dependence()
        features = extract(self.subject, self.data.fit).features.to(self.subject.device)
        return HeadInformation(features, self.data.fit.groups, self.generator)

    def _bound(self) -> float:
        """Return how far the fit rows' biases and targets go together, 0 to 1.

        Where they do, drawing a class together draws its bias in.
        """
        rows = self.data.fit
        targets = one_hot(rows.groups.target, rows.groups.num_classes).float()
        biases = gather_biases(rows, torch.arange(len(rows)), torch.device("cpu"))
        return max(float(hsic(targets, bias)) for bias in biases)

    def _pace(self, step: int) -> float:
        """Return the share of the step size that is left after some steps."""
        pace = (1 + math.cos(math.pi * self._passed(step))) / 2 if self.settings.cosine else 1.0
        if self._passed(step) < self.settings.warm_up:
            pace *= self._passed(step + 1) / self.settings.warm_up
        return pace

    def _passed(self, step: int) -> float:
        return min(1.0, step / (self._batches * self.settings.epochs))

    def step(
        self, x: Tensor, target: Tensor, biases: list[Tensor], buffers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Take one step of gates and head, and of bias heads if there are any, on one batch.

        Args:
            x: `[n, 3, H, W]` images.
            target: `[n]` int64.
            biases: One `[n]` int64 tensor per fitted bias.
            buffers: BatchNorm buffers that take running updates; empty when frozen.

        Returns:
            Cross-entropy and bias term, scalars without gradient.
        """
        overrides = {**self.gates.overrides(), **self.head, **buffers}
        features, logits = self.subject.forward(x, overrides)
        task = cross_entropy(logits, target)
        told = self.bias_term(features, biases)
        loss = task + self.settings.gamma * told
        if self.scatter_weight:
            loss = loss + self.scatter_weight * scatter(features, target, self.subject.num_classes)
        if self.settings.within:
            inside = within_classes(features, target, self.subject.num_classes)
            loss = loss + self.settings.within * Dependence()(inside, biases)
        # A layer that the forward pass never calls has gradient zero.
        learned = [*self.gates.logits, *self.head.values()]
        grads = torch.autograd.grad(loss, learned, materialize_grads=True)
        for value, grad in zip(learned, grads, strict=True):
            value.grad = grad
        self.optimiser.step()
        self.schedule.step()
        if self.closing:
            self.closing.step(self._passed(self.schedule.last_epoch))
        self.bias_term.follow(features, biases)
        return task.detach(), told.detach()

    def run(self, progress: Progress | None) -> None:
        """Search until soft and hard agree or the epochs are used up."""
        kept, best, start = self._snapshot(), float("inf"), time.perf_counter()
        select = self.data.select
        if not self.closing:  # all gates open: no mask at all is a candidate too
            best = self._objective(extract(self.subject, select))
        for epoch in range(1, self.settings.epochs + 1):
            if self.settings.refit_bias_heads and epoch > 1:
                outputs = extract(self.subject, self.data.fit, overrides=self._now())
                self.bias_term.refit(*self._read(outputs, self.data.fit))
            task, told, buffers = self._epoch()
            folded = soft = self._hard(buffers)
            if not self.settings.hard:
                soft = extract(self.subject, select, overrides={**self._now(), **buffers})
            objective = self._objective(folded)
            same = folded.logits.argmax(1) == soft.logits.argmax(1)
            agreement = float(same.float().mean())
            if objective <= best and (self.closing is None or self.closing.finished):
                kept, best = self._snapshot(), objective
            if progress:
                each = (time.perf_counter() - start) / epoch
                progress(
                    {
                        "epoch": epoch,
                        "epochs": self.settings.epochs,
                        "augmentation": str(self.augmentation),
                        # A hard gate is the limit of a soft one at temperature 0.
                        "temperature": 0.0 if self.settings.hard else self.gates.temperature,
                        "task_loss": task,
                        "bias_term": told,
                        "select_objective": objective,
                        "select_balanced_accuracy": select_accuracy(folded.logits, select.groups),
                        "agreement": agreement,
                        "sparsity": self.gates.sparsity(),
                        "seconds_left": each * (self.settings.epochs - epoch),
                    }
                )
            if self.settings.hard:
                continue
            if agreement >= self.settings.agreement and epoch > 1:
                break
            self._anneal(self._objective(soft))
        if self.settings.keep_best:
            self._restore(kept)

    def _snapshot(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.gates.snapshot(), {n: t.detach().clone() for n, t in self.head.items()}

    @torch.no_grad()
    def _restore(self, kept: tuple[list[Tensor], dict[str, Tensor]]) -> None:
        self.gates.restore(kept[0])
        for name, value in self.head.items():
            value.copy_(kept[1][name])

    def trained_head(self) -> dict[str, Tensor]:
        """Return the head's trained parameters by name, on the CPU; empty if it was left alone."""
        return {name: value.detach().cpu() for name, value in self.head.items()}

    def _now(self) -> dict[str, Tensor]:
        now = {**self.gates.overrides(), **self.head}
        return {name: value.detach() for name, value in now.items()}

    def _epoch(self) -> tuple[float, float, dict[str, Tensor]]:
        """Run one pass over the fit rows; return mean losses and the running buffers."""
        if self.settings.batch_statistics:
            with batch_statistics(self.subject) as buffers:
                return *self._pass(buffers), buffers
        return *self._pass({}), {}

    def _pass(self, buffers: dict[str, Tensor]) -> tuple[float, float]:
        rows, device = self.data.fit, self.subject.device
        sums, count = torch.zeros(2, device=device), 0
        for picked, x in rows.epoch(self.batch_size, self.generator, self.settings.balance):
            target = rows.groups.target[picked].to(device)
            x = self.augmentation(x, self.generator)
            sums += len(picked) * torch.stack(
                self.step(x, target, gather_biases(rows, picked, device), buffers)
            )
            count += len(picked)
        task, told = (sums / count).tolist()
        return task, told

    def _hard(self, buffers: dict[str, Tensor]) -> Outputs:
        """Run the network with hard masks and the epoch's statistics on select rows."""
        head = {name: value.detach() for name, value in self.head.items()}
        overrides = {**self.gates.frozen(), **head, **buffers}
        return extract(self.subject, self.data.select, overrides=overrides)

    def _objective(self, outputs: Outputs) -> float:
        """Return what the search lowers, measured on select rows."""
        rows = self.data.select
        told = float(self.bias_term(*self._read(outputs, rows)))
        return select_loss(outputs.logits, rows.groups) + self.settings.gamma * told

    def _read(self, outputs: Outputs, rows: Rows) -> tuple[Tensor, list[Tensor]]:
        """Return features and biases of all rows, on the search's device."""
        device = self.subject.device
        return outputs.features.to(device), gather_biases(rows, torch.arange(len(rows)), device)

    def _anneal(self, objective: float) -> None:
        """Lower the temperature when the select objective has stopped falling."""
        if objective < self._best_objective * (1 - self.settings.plateau):
            self._best_objective, self._waited = objective, 0
            return
        self._waited += 1
        if self._waited > self.settings.patience:
            self.gates.temperature *= self.settings.factor
            self._best_objective, self._waited = float("inf"), 0


def _batch_size(rows: int, settings: Recipe) -> int:
    """Return the rows per step: as set, smaller where an epoch would have too few steps."""
    return min(settings.batch_size, max(_LEAST_BATCH, rows // settings.batches))
