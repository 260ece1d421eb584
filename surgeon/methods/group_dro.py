"""Group DRO: fine-tuning that weighs the groups by how badly they fare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.data import Data
from surgeon.methods.training import Objective, Pass, Training
from surgeon.options import check_positive
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class GroupDRO(Training):
    """Lower the cross-entropy of groups under weights that grow with it.

    With each batch the weight of a group is multiplied by exp(step times its mean cross-entropy
    there), and the weights are scaled to sum to one; groups that the batch does not hold count as
    if they had no loss.

    Source:
        Sagawa and others, Distributionally robust neural networks for group shifts, ICLR 2020,
        algorithm 1, without their generalisation adjustment.
    """

    name: ClassVar[str] = "group-dro"

    group_step: float = 0.01
    """Step of the exponentiated gradient on the weights of the groups."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("group_step", self.group_step)

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Return the weighted sum of the groups' mean cross-entropies, and follow it."""
        groups, device = data.fit.groups, subject.device
        targets, index = groups.target.to(device), groups.index.to(device)
        weights = (groups.counts() > 0).double().to(device)
        weights /= weights.sum()

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            rows = seen.rows.to(device)
            each = cross_entropy(seen.logits, targets[rows], reduction="none").double()
            held = index[rows]
            counts = torch.zeros_like(weights).index_add(0, held, torch.ones_like(each))
            means = torch.zeros_like(weights).index_add(0, held, each) / counts.clamp_min(1)
            weights.mul_((self.group_step * means.detach()).exp())
            weights.div_(weights.sum())
            return (weights.clone() @ means).to(seen.logits.dtype), {}

        return Objective(loss, data)
