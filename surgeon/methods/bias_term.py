"""What a search lowers beside its task: how much the bottleneck tells of the biases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.bias_head import BiasHead
from surgeon.dependence import hsic
from surgeon.groups import Groups
from surgeon.mutual_information import mutual_information


class BiasTerm(ABC):
    """A differentiable reading of the biases in features, 0 (nothing) to 1."""

    @abstractmethod
    def __call__(self, features: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Return the mean over biases, a scalar.

        Args:
            features: `[n, D]`; the gradient reaches them.
            biases: One `[n]` int64 tensor per fitted bias.
        """

    @abstractmethod
    def follow(self, features: Tensor, biases: Sequence[Tensor]) -> None:
        """Learn from the batch that the gates have just stepped on."""

    @abstractmethod
    def refit(self, features: Tensor, biases: Sequence[Tensor]) -> None:
        """Learn anew from the features of all fit rows."""


class Dependence(BiasTerm):
    """Normalised HSIC, in closed form: there is nothing to learn."""

    def __call__(self, features: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Return the mean criterion."""
        return torch.stack([hsic(features, bias) for bias in biases]).mean()

    def follow(self, features: Tensor, biases: Sequence[Tensor]) -> None:
        """Learn nothing."""

    def refit(self, features: Tensor, biases: Sequence[Tensor]) -> None:
        """Learn nothing."""


class HeadInformation(BiasTerm):
    """Mutual information of a bias with what a linear bias head reads, a head per bias.

    Args:
        features: `[N, D]`, vanilla bottleneck features of the fit rows, on the search's device.
        groups: Labels of the same rows.
        generator: Orders the rows whenever heads are fitted.

    Source:
        FFW (ECCV 2024), eq. 10.
    """

    def __init__(self, features: Tensor, groups: Groups, generator: torch.Generator) -> None:
        self.heads = [BiasHead(features, groups.num_values(k)) for k in groups.fitted]
        self._generator = generator
        self.refit(features, [groups.biases[:, k].to(features.device) for k in groups.fitted])

    def __call__(self, features: Tensor, biases: Sequence[Tensor]) -> Tensor:
        """Return the mean information, each over ln of the bias's values."""
        terms = [
            mutual_information(head(features), bias, head.num_values)
            for head, bias in zip(self.heads, biases, strict=True)
        ]
        return torch.stack(terms).mean()

    def follow(self, features: Tensor, biases: Sequence[Tensor]) -> None:
        """Take one step of every head."""
        for head, bias in zip(self.heads, biases, strict=True):
            head.step(features, bias)

    def refit(self, features: Tensor, biases: Sequence[Tensor]) -> None:
        """Train every head until its loss stops falling."""
        for head, bias in zip(self.heads, biases, strict=True):
            head.fit(features, bias, generator=self._generator)
