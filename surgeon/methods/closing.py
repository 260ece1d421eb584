"""Close whole units during a search: the least needed first, a few at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

# The running mean of a unit's need forgets with this factor per step.
_MEMORY = 0.99
# No layer loses more than this share of its units.
_MOST = 0.8
# Units close between these shares of the search.
_FIRST, _LAST = 0.1, 0.5


class UnitClosing:
    """Close a share of the units between a tenth and a half of a search.

    A unit's need is the running mean of the squared gradient of the objective by its gate, which
    is the squared first-order change of the objective when the unit goes. A closed unit stays
    closed, and what is left has the rest of the search to make up for it.

    Args:
        logits: `[U]` gate logits per module, all open; their `grad` is read, their values are set.
        share: Of all units, to be closed at the end.
        least: Units that each layer keeps; a fifth of its units stay in any case.

    Source:
        Molchanov and others, Importance estimation for neural network pruning, CVPR 2019, eq. 8,
        for gates. The running mean and the schedule are ours.
    """

    def __init__(
        self, logits: Sequence[Tensor], share: float, least: Sequence[int] | None = None
    ) -> None:
        self.logits, self.share = tuple(logits), share
        self.needs = [torch.zeros_like(logit) for logit in self.logits]
        self._keep = least or [0] * len(self.logits)
        self._total = sum(logit.numel() for logit in self.logits)
        self._closed = 0

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Take in the gradients of one batch and close what is due.

        Args:
            progress: Share of the search that has passed.
        """
        if progress > _LAST:
            return
        for need, logit in zip(self.needs, self.logits, strict=True):
            if logit.grad is not None:
                need.mul_(_MEMORY).add_(logit.grad.square())
        due = self.share * min(1.0, max(0.0, (progress - _FIRST) / (_LAST - _FIRST)))
        self._close(int(due * self._total) - self._closed)

    @property
    def finished(self) -> bool:
        """Whether the share is reached, or no unit is left that may go."""
        return self._closed >= int(self.share * self._total) or self._least(self._open()) is None

    def _close(self, num: int) -> None:
        """Close so many units more, or all that may go."""
        if num <= 0:
            return
        needs, closed = self._open(), defaultdict[int, list[int]](list)
        for _ in range(num):
            least = self._least(needs)
            if least is None:
                break
            layer, unit = least
            needs[layer][unit] = math.inf
            closed[layer].append(unit)
            self._closed += 1
        for layer, units in closed.items():
            self.logits[layer][units] = -1.0

    def _open(self) -> list[Tensor]:
        """Return the needs of each layer's units on the CPU, infinite where closed.

        They come over at once: a GPU is waited for a single time, however many units are closed.
        """
        needs = torch.where(torch.cat(self.logits) >= 0, torch.cat(self.needs), math.inf)
        return list(needs.detach().cpu().split([len(need) for need in self.needs]))

    def _least(self, needs: Sequence[Tensor]) -> tuple[int, int] | None:
        """Find the open unit of least need, among layers that may lose another."""
        best, found = math.inf, None
        for layer, (need, keep) in enumerate(zip(needs, self._keep, strict=True)):
            left = int((need < math.inf).sum()) - 1
            if left < max(keep, (1 - _MOST) * len(need)):
                continue
            value, unit = need.min(0)
            if float(value) < best:
                best, found = float(value), (layer, int(unit))
        return found
