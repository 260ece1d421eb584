"""How weights are stepped: optimiser, schedule, epochs, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from timm.optim import Lamb
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

Balance = Literal["groups", "none"]


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
