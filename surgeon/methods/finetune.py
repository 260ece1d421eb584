"""Plain fine-tuning of all weights: what an owner who can train would do with the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.data import Data
from surgeon.methods.training import Loss, Training
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Lower the cross-entropy."""

    name: ClassVar[str] = "finetune"

    def new_loss(self, subject: Subject, data: Data) -> Loss:
        """Return the mean cross-entropy of a batch."""
        targets = data.fit.groups.target.to(subject.device)

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return cross_entropy(logits, targets[rows.to(targets.device)])

        return loss
