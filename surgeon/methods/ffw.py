"""FFW: search a mask over frozen weights that keeps the task and loses the bias."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.bias_head import BiasHead
from surgeon.data import Data, Rows, extract
from surgeon.edit import Edit
from surgeon.gates import Gates, unit_sites, weight_sites
from surgeon.methods.base import (
    Method,
    Progress,
    gather_biases,
    new_edit,
    select_accuracy,
    with_erasure,
    with_recalibration,
)
from surgeon.mutual_information import mutual_information
from surgeon.recalibrate import batch_statistics, recalibrate
from surgeon.subject import Subject

Mode = Literal["unstructured", "structured"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of the search that belong together."""

    gamma: float
    """Weight of the bias term."""
    lr: float
    """Adam step on the gate logits."""
    epochs: int
    """At most this many."""
    batch_size: int = 100
    initial: float = 0.0
    """Gate logit at the start."""
    cosine: bool = False
    """Let the step size fall to zero along a half cosine."""
    hard: bool = False
    """0/1 gates in the forward pass instead of soft ones."""
    head_steps: int = 1
    """Bias-head steps per batch."""
    refit_head: bool = False
    """Refit the bias head on cached features before every epoch."""
    standardise: bool = True
    """Scale features for the bias head."""
    batch_statistics: bool = True
    """BatchNorm normalises with batch statistics while fitting."""
    own_output: bool = False
    """Structured gates on the module's own output."""
    factor: float = 0.5
    """Temperature multiplier on a plateau of the select objective."""
    patience: int = 5
    """Epochs without progress before the temperature falls."""
    plateau: float = 0.05
    """Relative progress that counts."""
    agreement: float = 0.999
    """Stop when soft and hard predictions agree on this share of select rows."""
    keep_best: bool = True
    """Return the epoch with the best balanced accuracy on select rows."""
    recalibrate: bool = True
    erase_head: bool = True


_DEFAULT: dict[str, Recipe] = {
    "unstructured": Recipe(
        gamma=3,
        lr=1e-2,
        epochs=40,
        batch_size=50,
        cosine=True,
        initial=0.02,
        hard=True,
        head_steps=3,
    ),
    "structured": Recipe(gamma=0.3, lr=2e-2, epochs=30, initial=0.0, patience=1, head_steps=3),
}
_PAPER = Recipe(
    gamma=10,
    lr=1e-3,
    epochs=200,
    refit_head=True,
    standardise=False,
    batch_statistics=False,
    own_output=True,
    keep_best=False,
    recalibrate=False,
    erase_head=False,
)


@dataclass(frozen=True, kw_only=True)
class FFW(Method):
    """Search a mask over the frozen encoder's weights (eq. 8) or units (eq. 9).

    Objective (eq. 10): cross-entropy + gamma times the mean over biases of the normalised mutual
    information between the bias and what a linear bias head reads off the bottleneck. None takes
    the recipe's own value.

    Source:
        Nahon and others, Debiasing surgeon: fantastic weights and how to find them, ECCV 2024.
        `recipe="paper"` follows its text. By default gates are hard with a pass-through gradient,
        BatchNorm uses batch statistics and is recalibrated, the best epoch on select rows is
        kept, and a closed-form erasure is folded into the head.
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
    balance: Literal["groups", "none"] = "groups"
    """Draw groups equally often, or rows as they come (paper: none)."""
    recalibrate: bool | None = None
    """Carry recalibrated BatchNorm statistics (paper: no)."""
    erase_head: bool | None = None
    """Fold the closed-form erasure into the head (paper: no)."""
    seed: int = 0

    def settings(self) -> Recipe:
        """Return the recipe with this configuration's own values put in."""
        recipe = _PAPER if self.recipe == "paper" else _DEFAULT[self.mode]
        given = {
            name: value
            for name in ("gamma", "epochs", "lr", "batch_size", "recalibrate", "erase_head")
            if (value := getattr(self, name)) is not None
        }
        return replace(recipe, **given)

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Search the mask on fit rows, choose on select rows, and finish the edit."""
        settings = self.settings()
        search = Search(subject, data, self, settings)
        search.run(progress)
        edit = new_edit(subject, self.name, masks=search.gates.masks(), units=search.gates.units())
        if settings.recalibrate:
            edit = with_recalibration(subject, data, edit, seed=self.seed)
        if settings.erase_head:
            edit = with_erasure(subject, data, edit)
        return edit


class Search:
    """The state of one search: gates, bias heads, optimiser, temperature."""

    def __init__(self, subject: Subject, data: Data, config: FFW, settings: Recipe) -> None:
        self.subject, self.data, self.config, self.settings = subject, data, config, settings
        if config.mode == "structured":
            sites = unit_sites(subject, own_output=settings.own_output)
        else:
            sites = weight_sites(subject, gate_head=config.gate_head)
        self.gates = Gates(subject, sites, initial=settings.initial, hard=settings.hard)
        self.optimiser = torch.optim.Adam(self.gates.logits, lr=settings.lr, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.heads = self._new_heads()
        self._best_objective, self._waited = float("inf"), 0
        self._steps = 0

    def _new_heads(self) -> list[BiasHead]:
        groups = self.data.fit.groups
        features = extract(self.subject, self.data.fit).features.to(self.subject.device)
        heads = [
            BiasHead(features, groups.num_values(k), standardise=self.settings.standardise)
            for k in groups.fitted
        ]
        self._fit_heads(heads, features)
        return heads

    def _fit_heads(self, heads: list[BiasHead], features: Tensor) -> None:
        every = torch.arange(len(self.data.fit))
        labels = gather_biases(self.data.fit, every, self.subject.device)
        for head, bias in zip(heads, labels, strict=True):
            head.fit(features, bias, generator=self.generator)

    def step(
        self, x: Tensor, target: Tensor, biases: list[Tensor], buffers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Take one gate step and the bias heads' steps on one batch.

        Args:
            x: `[n, 3, H, W]` images.
            target: `[n]` int64.
            biases: One `[n]` int64 tensor per fitted bias.
            buffers: BatchNorm buffers that take running updates; empty when frozen.

        Returns:
            Cross-entropy and mean normalised mutual information, scalars without gradient.
        """
        features, logits = self.subject.forward(x, {**self.gates.overrides(), **buffers})
        task = cross_entropy(logits, target)
        information = self._information(features, biases)
        loss = task + self.settings.gamma * information
        for logit, grad in zip(
            self.gates.logits, torch.autograd.grad(loss, self.gates.logits), strict=True
        ):
            logit.grad = grad
        if self.settings.cosine:
            self._slow_down()
        self.optimiser.step()
        for head, bias in zip(self.heads, biases, strict=True):
            head.step(features, bias, times=self.settings.head_steps)
        return task.detach(), information.detach()

    def _slow_down(self) -> None:
        batches = max(1, -(-len(self.data.fit) // self.settings.batch_size))
        share = min(1.0, self._steps / (batches * self.settings.epochs))
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * (1 + math.cos(math.pi * share)) / 2
        self._steps += 1

    def _information(self, features: Tensor, biases: list[Tensor]) -> Tensor:
        terms = [
            mutual_information(head(features), bias, head.num_values)
            for head, bias in zip(self.heads, biases, strict=True)
        ]
        return torch.stack(terms).mean()

    def run(self, progress: Progress | None) -> None:
        """Search until soft and hard agree or the epochs are used up."""
        best, kept, start = -1.0, self.gates.snapshot(), time.perf_counter()
        for epoch in range(1, self.settings.epochs + 1):
            if self.settings.refit_head and epoch > 1:
                outputs = extract(self.subject, self.data.fit, overrides=self._now())
                self._fit_heads(self.heads, outputs.features.to(self.subject.device))
            task, information, buffers = self._epoch()
            accuracy, agreement, objective = self._judge(buffers)
            if accuracy > best:
                best, kept = accuracy, self.gates.snapshot()
            if progress:
                each = (time.perf_counter() - start) / epoch
                progress(
                    {
                        "epoch": epoch,
                        "epochs": self.settings.epochs,
                        "temperature": self.gates.temperature,
                        "task_loss": task,
                        "mutual_information": information,
                        "select_balanced_accuracy": accuracy,
                        "agreement": agreement,
                        "sparsity": self.gates.sparsity(),
                        "seconds_left": each * (self.settings.epochs - epoch),
                    }
                )
            if not self.settings.hard and agreement >= self.settings.agreement and epoch > 1:
                break
            self._anneal(objective)
        if self.settings.keep_best:
            self.gates.restore(kept)

    def _now(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.gates.overrides().items()}

    def _epoch(self) -> tuple[float, float, dict[str, Tensor]]:
        """Run one pass over the fit rows; return mean losses and the running buffers."""
        if self.settings.batch_statistics:
            with batch_statistics(self.subject) as buffers:
                return *self._pass(buffers), buffers
        return *self._pass({}), {}

    def _pass(self, buffers: dict[str, Tensor]) -> tuple[float, float]:
        rows, device = self.data.fit, self.subject.device
        sums, count = torch.zeros(2, device=device), 0
        for picked, x in rows.epoch(self.settings.batch_size, self.generator, self.config.balance):
            target = rows.groups.target[picked].to(device)
            sums += len(picked) * torch.stack(
                self.step(x, target, gather_biases(rows, picked, device), buffers)
            )
            count += len(picked)
        task, information = (sums / count).tolist()
        return task, information

    def _judge(self, buffers: dict[str, Tensor]) -> tuple[float, float, float]:
        """Measure on select rows: hard accuracy, soft/hard agreement, soft objective."""
        rows: Rows = self.data.select
        frozen = self.gates.frozen()
        settled = (
            recalibrate(self.subject, self.data.fit, frozen, seed=self.config.seed)
            if self.settings.recalibrate
            else {}
        )
        on_device = {n: t.to(self.subject.device) for n, t in settled.items()}
        hard = extract(self.subject, rows, overrides={**frozen, **on_device})
        soft = hard
        if not self.settings.hard:
            soft = extract(self.subject, rows, overrides={**self._now(), **buffers})
        agreement = float((hard.logits.argmax(1) == soft.logits.argmax(1)).float().mean())
        every = torch.arange(len(rows))
        biases = gather_biases(rows, every, self.subject.device)
        features = soft.features.to(self.subject.device)
        objective = float(cross_entropy(soft.logits, rows.groups.target)) + (
            self.settings.gamma * float(self._information(features, biases))
        )
        return select_accuracy(hard.logits, rows.groups), agreement, objective

    def _anneal(self, objective: float) -> None:
        """Lower the temperature when the select objective has stopped falling."""
        if objective < self._best_objective * (1 - self.settings.plateau):
            self._best_objective, self._waited = objective, 0
            return
        self._waited += 1
        if self._waited > self.settings.patience:
            self.gates.temperature *= self.settings.factor
            self._best_objective, self._waited = float("inf"), 0
