"""Plain fine-tuning of all weights: what an owner who can train would do with the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.data import Data
from surgeon.methods.training import Objective, Pass, Training
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Lower the cross-entropy."""

    name: ClassVar[str] = "finetune"

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Return the mean cross-entropy of a batch."""
        targets = data.fit.groups.target.to(subject.device)

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            return cross_entropy(seen.logits, targets[seen.rows.to(targets.device)]), {}

        return Objective(loss, data)
