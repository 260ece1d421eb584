"""GBA: adversarial training against a bias, with features dropped by the adversary's gradients."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from surgeon.data import Data, extract
from surgeon.methods.base import feature_scaling, gather_biases, random_batches
from surgeon.methods.training import Objective, Pass, Training
from surgeon.subject import Subject

# Steepness of the ramp of the adversarial term, from DANN (Ganin and others, JMLR 2016).
_RAMP = 10.0
# Adam step of a discriminator, and the batches of given features that it starts with.
_LR, _START, _BATCH = 5e-3, 300, 50


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Training):
    """Lower the cross-entropy of the target, and raise a discriminator's of the bias.

    A discriminator per bias, one hidden layer as wide as the features, is trained on the given
    features and then beside the network. The head sees the features that `strikes` leaves, scaled
    by the inverse share of those: images are later classified by all of them. The weight of the
    adversarial term grows from 0 to 1 as 2 / (1 + exp(-10 p)) - 1, p the share of the training
    that is over. A row counts with the loss of knowing nothing at most: to mislead a discriminator
    further is no gain, and has no end. With several biases a feature is dropped where one of them
    strikes it, and the adversarial terms are averaged.

    Source:
        GBA (AAAI 2022), eq. 1 to 8. The paper leaves open the discriminator, the ramp, which logit
        is derived (ours: the largest less the mean of all, which a shift of all does not change),
        the scale of what is left and how images are classified later; its adversarial term has no
        bound. No code is public.
    """

    @abstractmethod
    def strikes(self, gradients: Tensor, right: Tensor) -> Tensor:
        """Choose the features to drop, image by image.

        Args:
            gradients: `[n, D]` of the discriminator's winning logit by the features.
            right: `[n, 1]` bool, whether that is the true bias.

        Returns:
            `[n, D]` bool, True drops.
        """

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Return the cross-entropy behind the mask less the discriminators'.

        Raises:
            IncompatibleError: The head is not linear.
        """
        subject.head.check_linear(self.name)
        device = subject.device
        targets = data.fit.groups.target.to(device)
        opponents = self._opponents(subject, data)

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            features = seen.features
            keep = torch.ones_like(features)
            fooled = []
            biases = gather_biases(data.fit, seen.rows, device)
            for opponent, bias in zip(opponents, biases, strict=True):
                opponent.step(features, bias)
                gradients, found = opponent.gradients(features)
                keep = keep * ~self.strikes(gradients, (found == bias)[:, None])
                fooled.append(opponent.loss(features, bias))
            share = keep.mean(1, keepdim=True).clamp_min(1 / keep.shape[1])
            task = cross_entropy(seen.head(features * keep / share), targets[seen.rows.to(device)])
            adversarial = torch.stack(fooled).mean()
            ramp = 2 / (1 + math.exp(-_RAMP * seen.passed)) - 1
            size = features.detach().abs()
            kept = (size * keep).sum() / size.sum().clamp_min(1e-12)
            figures = {"task_loss": task, "adversarial_loss": adversarial, "kept": kept}
            return task - ramp * adversarial, {n: value.detach() for n, value in figures.items()}

        return Objective(loss, data)

    def _opponents(self, subject: Subject, data: Data) -> list[_Discriminator]:
        """Make a discriminator per bias that has seen some batches of the given features."""
        groups = data.fit.groups
        features = extract(subject, data.fit).features.to(subject.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            opponents = [_Discriminator(features, groups.num_values(k)) for k in groups.fitted]
            for x, biases in random_batches(features, data.fit, _START, _BATCH):
                for opponent, bias in zip(opponents, biases, strict=True):
                    opponent.step(x, bias)
        return opponents


class _Discriminator:
    """Reads one bias off the features; what it learns never reaches them."""

    def __init__(self, features: Tensor, num_values: int) -> None:
        width = features.shape[1]
        scaling = nn.BatchNorm1d(width, affine=False).eval()
        mean, scale = feature_scaling(features)
        scaling.running_mean, scaling.running_var = mean, scale.square()
        net = nn.Sequential(
            scaling, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_values)
        )
        self.net = net.to(features.device)
        self._optimiser = torch.optim.Adam(self.net.parameters(), lr=_LR)

    def step(self, features: Tensor, bias: Tensor) -> None:
        """Lower its cross-entropy on one batch."""
        self._optimiser.zero_grad()
        cross_entropy(self.net(features.detach()), bias).backward()
        self._optimiser.step()

    def loss(self, features: Tensor, bias: Tensor) -> Tensor:
        """Return its cross-entropy, differentiable in the features alone.

        Each row's is at most that of equal shares, log B.
        """
        fixed = {name: value.detach() for name, value in self.net.named_parameters()}
        logits = functional_call(self.net, fixed, (features,))
        each = cross_entropy(logits, bias, reduction="none")
        return each.clamp_max(math.log(logits.shape[1])).mean()

    def gradients(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient `[n, D]` of its winning margin, and the values `[n]` that win."""
        x = features.detach().requires_grad_()
        logits = self.net(x)
        top, found = logits.max(1)
        (gradients,) = torch.autograd.grad((top - logits.mean(1)).sum(), x)
        return gradients, found


@dataclass(frozen=True, kw_only=True)
class Adversarial(AdversarialTraining):
    """Drop nothing: plain adversarial training, GBA's control."""

    name: ClassVar[str] = "adversarial"

    def strikes(self, gradients: Tensor, right: Tensor) -> Tensor:
        """Choose none."""
        return torch.zeros_like(gradients, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class GBA(AdversarialTraining):
    """Drop what speaks for the winning bias where it is the true one, else what speaks against."""

    name: ClassVar[str] = "gba"

    def strikes(self, gradients: Tensor, right: Tensor) -> Tensor:
        """Choose positive gradients where it is right, negative ones where it is wrong."""
        return torch.where(right, gradients, -gradients) > 0


@dataclass(frozen=True, kw_only=True)
class GBAN(AdversarialTraining):
    """Drop what speaks for the winning bias, right or wrong: GBA's ablation GBA-n."""

    name: ClassVar[str] = "gba-n"

    def strikes(self, gradients: Tensor, right: Tensor) -> Tensor:
        """Choose positive gradients."""
        return gradients > 0


@dataclass(frozen=True, kw_only=True)
class GBAC(AdversarialTraining):
    """Drop what speaks for the winning bias only where it is the true one: ablation GBA-c."""

    name: ClassVar[str] = "gba-c"

    def strikes(self, gradients: Tensor, right: Tensor) -> Tensor:
        """Choose positive gradients where it is right."""
        return right & (gradients > 0)
