"""CSAD: make features of different images tell nothing of each other's bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from surgeon.cross_sample import pair_information, random_walk, walk_likeness
from surgeon.data import Data, extract
from surgeon.methods.base import feature_scaling, gather_biases, random_batches
from surgeon.methods.training import Objective, Pass, Training
from surgeon.subject import Subject

# Widths of the bias branch and of the estimator, and steps of each per batch, as in the paper.
_BRANCH, _HIDDEN, _EMBEDDING, _STEPS = 128, 64, 32, 10
# Adam steps of the branch, and of the estimator before and beside the network's training: a keen
# estimator saturates and has no gradient to give.
_LR, _START_LR, _ESTIMATOR_LR = 1e-3, 5e-4, 5e-5
# Batches of given features that branch and then estimator start with.
_START, _BATCH = 150, 50


@dataclass(frozen=True, kw_only=True)
class CrossSampleTraining(Training):
    """Lower the cross-entropy plus the cross-sample information of target and bias features.

    Target features are the bottleneck. A bias branch, one linear layer and a predictor, reads each
    bias from it; two embeddings, of the bottleneck and of the branch, score every pair of images
    of a batch, and are trained to score pairs of equal bias higher. What they gain over telling
    nothing, at least 0, is the information, a Jensen-Shannon bound in nats; with several biases
    the mean. Branch and embeddings are dropped at the end.

    Source:
        Zhu and others, Learning bias-invariant representation by cross-sample mutual information
        minimization, ICCV 2021, eq. 2 to 9. There the target has a layer of its own, which would
        change the network's shape, and encoder and estimator take turns; the information has no
        floor, which the encoder can use without end, and the walks' scores are all below zero.
        Ours are centred. The published code sums over pairs where eq. 9 has the mean, as we do.
    """

    content: ClassVar[bool]
    """Score a pair by how alike its embeddings are."""
    structure: ClassVar[bool]
    """Score a pair by how alike the two place it among the batch."""

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Return the cross-entropy plus the information."""
        device = subject.device
        targets = data.fit.groups.target.to(device)
        branches = self._branches(subject, data)

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            task = cross_entropy(seen.logits, targets[seen.rows.to(device)])
            told = []
            biases = gather_biases(data.fit, seen.rows, device)
            for branch, bias in zip(branches, biases, strict=True):
                for _ in range(_STEPS):
                    branch.step(seen.features, bias)
                for _ in range(_STEPS):
                    branch.step_estimator(seen.features, bias)
                told.append(branch.information(seen.features, bias))
            information = torch.stack(told).mean()
            figures = {"task_loss": task.detach(), "bias_term": information.detach()}
            return task + information.relu(), figures

        return Objective(loss, data)

    def _branches(self, subject: Subject, data: Data) -> list[_Branch]:
        """Make a bias branch per bias that has seen some batches of the given features."""
        groups = data.fit.groups
        features = extract(subject, data.fit).features.to(subject.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            branches = [
                _Branch(
                    features,
                    groups.num_values(k),
                    content=self.content,
                    structure=self.structure,
                )
                for k in groups.fitted
            ]
            for learn in (_Branch.step, _Branch.step_estimator):
                for x, biases in random_batches(features, data.fit, _START, _BATCH):
                    for branch, bias in zip(branches, biases, strict=True):
                        learn(branch, x, bias)
        for branch in branches:
            branch.slow_down()
        return branches


class _Branch:
    """Reads one bias, and estimates what target and bias features of pairs have in common."""

    def __init__(
        self, features: Tensor, num_values: int, *, content: bool, structure: bool
    ) -> None:
        width, device = features.shape[1], features.device
        self._mean, self._scale = feature_scaling(features)
        self.reader = nn.Linear(width, _BRANCH).to(device)
        self.predictor = _perceptron(_BRANCH, num_values).to(device)
        self.estimator = _Estimator(width, content=content, structure=structure).to(device)
        read = [*self.reader.parameters(), *self.predictor.parameters()]
        self._of_reader = torch.optim.Adam(read, lr=_LR, fused=True)
        learnt = self.estimator.parameters()
        self._of_estimator = torch.optim.Adam(learnt, lr=_START_LR, fused=True)

    def step(self, features: Tensor, bias: Tensor) -> None:
        """Let branch and predictor learn the bias from a batch."""
        self._of_reader.zero_grad()
        read = self.reader(self._scaled(features.detach()))
        cross_entropy(self.predictor(read), bias).backward()
        self._of_reader.step()

    def step_estimator(self, features: Tensor, bias: Tensor) -> None:
        """Let the embeddings learn to tell pairs of equal bias."""
        self._of_estimator.zero_grad()
        x = self._scaled(features.detach())
        (-self.estimator(x, self.reader(x).detach(), bias)).backward()
        self._of_estimator.step()

    def slow_down(self) -> None:
        """Let the estimator take small steps from now on."""
        for group in self._of_estimator.param_groups:
            group["lr"] = _ESTIMATOR_LR

    def information(self, features: Tensor, bias: Tensor) -> Tensor:
        """Return the estimate, differentiable in the features alone."""
        parts = (self.reader, self.estimator)
        for part in parts:
            part.requires_grad_(False)
        x = self._scaled(features)
        told = self.estimator(x, self.reader(x), bias)
        for part in parts:
            part.requires_grad_(True)
        return told

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._scale


class _Estimator(nn.Module):
    """Scores pairs of target and bias features by content, structure, or both."""

    def __init__(self, width: int, *, content: bool, structure: bool) -> None:
        super().__init__()
        self.content, self.structure = content, structure
        self.of_target = _perceptron(width, _EMBEDDING)
        self.of_bias = _perceptron(_BRANCH, _EMBEDDING)
        # Positive through softplus: the paper's own divide the loss and can cross zero.
        self.sharpness = nn.Parameter(torch.tensor([10.0, 10.0]))
        self.slope = nn.Parameter(torch.tensor(math.log(math.e - 1)))

    def forward(self, target: Tensor, read: Tensor, bias: Tensor) -> Tensor:
        """Return the estimated information, nats.

        Args:
            target: `[n, D]` target features.
            read: `[n, 128]` bias features.
            bias: `[n]` int64.
        """
        t, b = normalize(self.of_target(target), dim=1), normalize(self.of_bias(read), dim=1)
        scores = torch.zeros(len(t), len(t), device=t.device)
        if self.content:
            scores = scores + t @ b.T
        if self.structure:
            sharp = softplus(self.sharpness)
            alike = walk_likeness(random_walk(t, sharp[0]), random_walk(b, sharp[1]))
            scores = scores + alike - alike.mean()
        return pair_information(softplus(self.slope) * scores, bias[:, None] == bias)


def _perceptron(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, _HIDDEN), nn.LeakyReLU(), nn.Linear(_HIDDEN, outputs))


@dataclass(frozen=True, kw_only=True)
class CSAD(CrossSampleTraining):
    """Score pairs by content and structure."""

    name: ClassVar[str] = "csad"
    content: ClassVar[bool] = True
    structure: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class CSADContent(CrossSampleTraining):
    """Score pairs by content alone."""

    name: ClassVar[str] = "csad-content"
    content: ClassVar[bool] = True
    structure: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class CSADStructure(CrossSampleTraining):
    """Score pairs by structure alone."""

    name: ClassVar[str] = "csad-struct"
    content: ClassVar[bool] = False
    structure: ClassVar[bool] = True
