"""ClusterFix: weigh rows by how badly their cluster fares; no bias label is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from surgeon.data import Data, Rows, extract
from surgeon.discovery.clusters import find_clusters
from surgeon.groups import Groups
from surgeon.methods.regime import Regime
from surgeon.methods.training import Objective, Pass, Training
from surgeon.options import check_choice, check_least
from surgeon.subject import Subject

# Share of a row's weight that a step renews, as in the paper.
_MOMENTUM = 0.3
# Adam step of the cluster heads.
_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class ClusterRegime(Regime):
    """How weights are stepped, and what weighs them."""

    clusters: int = 4
    """Of each class (paper: 8)."""
    gamma: float = 0.02
    """Weight of the cluster heads' loss (paper: 0.5 on CelebA, 0.01 on Waterbirds)."""


@dataclass(frozen=True, kw_only=True)
class ClusterFix(Training):
    """Lower a reweighted cross-entropy plus that of a head per class that tells its clusters.

    The fit rows of each class are clustered by the given features. A row's weight follows N / N_c
    times the share its cluster c has in the sum of all clusters' mean losses, each of them of
    target and cluster head; a third of it is renewed whenever the row is drawn. The epoch is
    chosen by the mean accuracy over the clusters of the select rows. Bias labels are not read.

    Source:
        ClusterFix (WACV 2024), eq. 6 to 9. The published code clusters by another network's
        features, leaves the target's loss out of the clusters' (eq. 8 has it, and so has ours), and
        chooses the epoch by bias labels.
    """

    name: ClassVar[str] = "clusterfix"
    default: ClassVar[Regime] = ClusterRegime(balance="none")
    paper: ClassVar[Regime | None] = ClusterRegime(
        clusters=8,
        gamma=0.5,
        optimiser="adam",
        lr=1e-4,
        weight_decay=1e-2,
        warm_up=0.0,
        average=0.0,
        epochs=100,
        batch_size=256,
        epoch_rows=None,
        balance="none",
        augment=False,
    )

    clusters: int | None = None
    """Of each class."""
    gamma: float | None = None
    """Weight of the cluster heads' loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Drawing groups equally often would read bias labels.
        check_choice("balance", self.balance, ("none",))
        check_least("clusters", self.clusters, 1)
        check_least("gamma", self.gamma, 0)

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Cluster the fit rows, and return the weighted loss with that of the clusters."""
        device, regime = subject.device, self.settings()
        assert isinstance(regime, ClusterRegime)
        clusters, gamma = regime.clusters, regime.gamma
        outputs = extract(subject, data.fit)
        known = self._by_cluster(subject, data, outputs.features, clusters)
        groups = known.fit.groups
        targets, cluster = groups.target.to(device), groups.biases[:, 0].to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            heads = _ClusterHeads(outputs.features.to(device), groups.num_classes, clusters)
        start = cross_entropy(outputs.logits, groups.target, reduction="none")
        start = start + gamma * math.log(clusters)
        weights = _Weights(start.to(device), groups.index.to(device))

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            rows = seen.rows.to(device)
            heads.step(seen.features, targets[rows], cluster[rows])
            each = cross_entropy(seen.logits, targets[rows], reduction="none")
            told = heads.losses(seen.features, targets[rows], cluster[rows])
            drawn = weights.follow(rows, (each + gamma * told).detach())
            task = (drawn * each).mean()
            figures = {"task_loss": task.detach(), "cluster_loss": told.detach().mean()}
            return task + gamma * told.mean(), figures

        return Objective(loss, known)

    def _by_cluster(self, subject: Subject, data: Data, features: Tensor, clusters: int) -> Data:
        """Put the clusters of fit and select rows in the place of their biases."""
        groups = data.fit.groups
        found = find_clusters(features, groups.target, groups.num_classes, clusters, seed=self.seed)
        values = tuple(str(number) for number in range(clusters))

        def clustered(rows: Rows, features: Tensor) -> Rows:
            target = rows.groups.target
            cluster = found.assign(features, target)
            known = Groups(target, cluster[:, None], groups.target_names, ("cluster",), (values,))
            return replace(rows, groups=known)

        select = clustered(data.select, extract(subject, data.select).features)
        return replace(data, fit=clustered(data.fit, features), select=select)


class _Weights:
    """The weight of every fit row, by the mean loss of its cluster.

    Args:
        losses: `[N]`, each row's before training.
        clusters: `[N]` int64.
    """

    def __init__(self, losses: Tensor, clusters: Tensor) -> None:
        self._losses, self._clusters = losses.double(), clusters
        self._counts = torch.bincount(clusters).clamp_min(1)
        self._sums = self._by_cluster(torch.arange(len(losses)), self._losses)
        self._weights = torch.ones_like(self._losses)

    def follow(self, rows: Tensor, losses: Tensor) -> Tensor:
        """Take in a batch's losses, and return its weights, mean 1.

        Args:
            rows: `[n]` int64.
            losses: `[n]`.
        """
        self._sums += self._by_cluster(rows, losses - self._losses[rows])
        self._losses[rows] = losses.double()
        means = self._sums / self._counts
        rare = len(self._losses) / self._counts
        due = (rare * means / means.sum())[self._clusters[rows]]
        self._weights[rows] *= 1 - _MOMENTUM
        self._weights[rows] += _MOMENTUM * due / due.mean()
        drawn = self._weights[rows]
        return (drawn / drawn.mean()).to(losses)

    def _by_cluster(self, rows: Tensor, values: Tensor) -> Tensor:
        """Add up values of some rows in each cluster, `[C K]`."""
        # A product with a one-hot matrix, not index_add, which is not deterministic on CUDA.
        sums = torch.zeros_like(self._counts, dtype=torch.float64)
        for chunk, part in zip(rows.split(1024), values.double().split(1024), strict=True):
            sums += part @ one_hot(self._clusters[chunk], len(sums)).double()
        return sums


class _ClusterHeads:
    """A linear head per class that tells its clusters; what they learn never reaches features."""

    def __init__(self, features: Tensor, num_classes: int, num_clusters: int) -> None:
        self._clusters = num_clusters
        self.net = nn.Linear(features.shape[1], num_classes * num_clusters).to(features.device)
        self._optimiser = torch.optim.Adam(self.net.parameters(), lr=_LR)

    def step(self, features: Tensor, target: Tensor, cluster: Tensor) -> None:
        """Lower the loss of one batch."""
        self._optimiser.zero_grad()
        self._losses(self.net(features.detach()), target, cluster).mean().backward()
        self._optimiser.step()

    def losses(self, features: Tensor, target: Tensor, cluster: Tensor) -> Tensor:
        """Return each row's cross-entropy `[n]`, differentiable in the features alone."""
        fixed = {name: value.detach() for name, value in self.net.named_parameters()}
        return self._losses(functional_call(self.net, fixed, (features,)), target, cluster)

    def _losses(self, logits: Tensor, target: Tensor, cluster: Tensor) -> Tensor:
        own = logits.view(len(logits), -1, self._clusters)[torch.arange(len(logits)), target]
        return cross_entropy(own, cluster, reduction="none")
