"""Training of all weights on the labelled rows; each method of the family brings its own loss."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.methods.augmentation import harmless
from surgeon.methods.base import Method, Progress, new_edit, select_accuracy
from surgeon.options import check_choice, check_least, check_positive
from surgeon.recalibrate import batch_statistics
from surgeon.subject import Subject

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits `[n, C]` and the positions `[n]` of their fit rows, and gives a scalar."""


@dataclass(frozen=True, kw_only=True)
class Training(Method):
    """Train every parameter with Adam on a cosine schedule; keep the best epoch on select rows.

    Rows are mirrored and shifted where the given network does not mind, as in the mask search.
    """

    lr: float = 1e-3
    """Adam step at the start of the cosine."""
    epochs: int = 80
    batch_size: int = 50
    """Rows per step."""
    balance: Literal["groups", "none"] = "groups"
    """Draw groups equally often, or rows as they come."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_least("epochs", self.epochs, 1)
        check_least("batch_size", self.batch_size, 2)
        check_choice("balance", self.balance, ("groups", "none"))

    @abstractmethod
    def new_loss(self, subject: Subject, data: Data) -> Loss:
        """Make the loss of one fit, with whatever state it keeps from step to step."""

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Train copies of the weights; the subject's own stay frozen."""
        device = subject.device
        weights = {
            name: value.detach().clone().requires_grad_()
            for name, value in subject.net.named_parameters()
        }
        optimiser = torch.optim.Adam(weights.values(), lr=self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs)
        generator = torch.Generator().manual_seed(self.seed)
        augmentation = harmless(subject, data, seed=self.seed)
        loss_of = self.new_loss(subject, data)
        best, kept, start = -1.0, {}, time.perf_counter()
        for epoch in range(1, self.epochs + 1):
            total = torch.zeros((), device=device)
            with batch_statistics(subject) as buffers:
                for rows, x in data.fit.epoch(self.batch_size, generator, self.balance):
                    x = augmentation(x, generator)
                    _, logits = subject.forward(x, {**weights, **buffers})
                    loss = loss_of(logits, rows)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    total += loss.detach() * len(rows)
            schedule.step()
            now = {n: t.detach() for n, t in {**weights, **buffers}.items()}
            accuracy = select_accuracy(
                extract(subject, data.select, overrides=now).logits, data.select.groups
            )
            if accuracy > best:
                best, kept = accuracy, {n: t.cpu().clone() for n, t in now.items()}
            if progress:
                each = (time.perf_counter() - start) / epoch
                progress(
                    {
                        "epoch": epoch,
                        "epochs": self.epochs,
                        "augmentation": str(augmentation),
                        "task_loss": float(total) / len(data.fit),
                        "select_balanced_accuracy": accuracy,
                        "seconds_left": each * (self.epochs - epoch),
                    }
                )
        parameters = {n: t for n, t in kept.items() if n in weights}
        return new_edit(
            subject,
            self.name,
            updates=parameters,
            buffers={n: t for n, t in kept.items() if n not in weights},
        )
