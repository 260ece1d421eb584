"""The search for a mask over frozen weights: gates, bias heads, temperature, choice of epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.bias_head import BiasHead
from surgeon.data import Data, Outputs, extract
from surgeon.gates import Gates, GateSite
from surgeon.methods.base import Progress, gather_biases, select_accuracy
from surgeon.mutual_information import mutual_information
from surgeon.recalibrate import batch_statistics, recalibrate
from surgeon.subject import Subject


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
    """Return the latest epoch within one standard error of the best on select rows."""
    balance: str = "groups"
    """Draw groups equally often, or rows as they come."""
    recalibrate: bool = True
    erase_head: bool = True


class Search:
    """The state of one search: gates, bias heads, optimiser, temperature."""

    def __init__(
        self,
        subject: Subject,
        data: Data,
        sites: Sequence[GateSite],
        settings: Recipe,
        *,
        seed: int,
    ) -> None:
        self.subject, self.data, self.settings, self.seed = subject, data, settings, seed
        self.gates = Gates(subject, sites, initial=settings.initial, hard=settings.hard)
        self.optimiser = torch.optim.Adam(self.gates.logits, lr=settings.lr, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
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
        # A layer that the forward pass never calls has gradient zero.
        grads = torch.autograd.grad(loss, self.gates.logits, materialize_grads=True)
        for logit, grad in zip(self.gates.logits, grads, strict=True):
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
        kept, start = self.gates.snapshot(), time.perf_counter()
        select = self.data.select
        # All gates open: no mask at all is a candidate too.
        best = select_accuracy(self._folded().logits, select.groups)
        for epoch in range(1, self.settings.epochs + 1):
            if self.settings.refit_head and epoch > 1:
                outputs = extract(self.subject, self.data.fit, overrides=self._now())
                self._fit_heads(self.heads, outputs.features.to(self.subject.device))
            task, information, buffers = self._epoch()
            folded = soft = self._folded()
            if not self.settings.hard:
                soft = extract(self.subject, select, overrides={**self._now(), **buffers})
            accuracy = select_accuracy(folded.logits, select.groups)
            same = folded.logits.argmax(1) == soft.logits.argmax(1)
            agreement = float(same.float().mean())
            best = max(best, accuracy)
            if accuracy >= best - self._standard_error(best):
                kept = self.gates.snapshot()
            if progress:
                each = (time.perf_counter() - start) / epoch
                progress(
                    {
                        "epoch": epoch,
                        "epochs": self.settings.epochs,
                        # A hard gate is the limit of a soft one at temperature 0.
                        "temperature": 0.0 if self.settings.hard else self.gates.temperature,
                        "task_loss": task,
                        "mutual_information": information,
                        "select_balanced_accuracy": accuracy,
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
            self.gates.restore(kept)

    def _standard_error(self, accuracy: float) -> float:
        """Of a balanced accuracy on the select rows: differences below it are noise."""
        return math.sqrt(accuracy * (1 - accuracy) / len(self.data.select))

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
        for picked, x in rows.epoch(
            self.settings.batch_size, self.generator, self.settings.balance
        ):
            target = rows.groups.target[picked].to(device)
            sums += len(picked) * torch.stack(
                self.step(x, target, gather_biases(rows, picked, device), buffers)
            )
            count += len(picked)
        task, information = (sums / count).tolist()
        return task, information

    def _folded(self) -> Outputs:
        """Run the network as it would be exported, masks hard and settled, on select rows."""
        frozen, settings = self.gates.frozen(), self.settings
        settled: dict[str, Tensor] = {}
        if settings.recalibrate:
            settled = recalibrate(
                self.subject, self.data.fit, frozen, seed=self.seed, balance=settings.balance
            )
        on_device = {n: t.to(self.subject.device) for n, t in settled.items()}
        return extract(self.subject, self.data.select, overrides={**frozen, **on_device})

    def _objective(self, outputs: Outputs) -> float:
        """Return the loss of the search on select rows."""
        rows = self.data.select
        biases = gather_biases(rows, torch.arange(len(rows)), self.subject.device)
        features = outputs.features.to(self.subject.device)
        information = float(self._information(features, biases))
        task = float(cross_entropy(outputs.logits, rows.groups.target))
        return task + self.settings.gamma * information

    def _anneal(self, objective: float) -> None:
        """Lower the temperature when the select objective has stopped falling."""
        if objective < self._best_objective * (1 - self.settings.plateau):
            self._best_objective, self._waited = objective, 0
            return
        self._waited += 1
        if self._waited > self.settings.patience:
            self.gates.temperature *= self.settings.factor
            self._best_objective, self._waited = float("inf"), 0
