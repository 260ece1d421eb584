"""Clusters of each class in feature space: groups of rows that share something but their target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

# As scikit-learn recommends where it starts more than once.
_STARTS = 10


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centres of the clusters of every class.

    Clusters of equal number point the same way from the mean of their class, as far as they can be
    paired, so that a number means about the same in each of them.
    """

    centres: Tensor
    """`[C, K, D]` float32, of features of length 1; NaN where a class has fewer clusters."""

    def assign(self, features: Tensor, target: Tensor) -> Tensor:
        """Number the nearest cluster of its own class for every row.

        Args:
            features: `[N, D]` float.
            target: `[N]` int64, values 0..C-1.

        Returns:
            `[N]` int64, values 0..K-1.
        """
        return self.distances(features, target).argmin(1)

    def distances(self, features: Tensor, target: Tensor) -> Tensor:
        """Measure how far every row lies from the clusters of its class, its length set to 1.

        Args:
            features: `[N, D]` float.
            target: `[N]` int64, values 0..C-1.

        Returns:
            `[N, K]` float32, infinite for clusters that a class does not have.
        """
        x = normalize(features.float(), dim=1)
        apart = [(x - centre).norm(dim=1) for centre in self.centres[target].unbind(1)]
        return torch.stack(apart, 1).nan_to_num(torch.inf)


def find_clusters(
    features: Tensor, target: Tensor, num_classes: int, num_clusters: int, *, seed: int
) -> Clusters:
    """Cluster the rows of each class by the direction of their features (k-means).

    Args:
        features: `[N, D]` float.
        target: `[N]` int64, values 0..C-1.
        num_classes: C.
        num_clusters: K; a class of fewer rows has one each.
        seed: Of the starts of k-means.

    Source:
        ClusterFix (WACV 2024), stage 1: k-means with cosine distance per class. Ours pairs the
        clusters of the classes, so that their numbers can serve as values of one bias.
    """
    x = normalize(features.float().cpu(), dim=1)
    centres = torch.full((num_classes, num_clusters, x.shape[1]), torch.nan)
    model: Tensor | None = None
    for value in range(num_classes):
        own = x[target == value]
        k = min(num_clusters, len(own))
        if not k:
            continue
        means = KMeans(k, n_init=_STARTS, random_state=seed)  # pyright: ignore
        fitted = means.fit(own.numpy())
        found = torch.from_numpy(fitted.cluster_centers_).float()
        directions = normalize(found - own.mean(0), dim=1)
        if model is None:
            centres[value, :k], model = found, directions
            continue
        # Clusters beyond those of the first class stay where there is room.
        pairs = linear_sum_assignment(-(model @ directions.T).numpy())
        places = dict(zip(*(side.tolist() for side in pairs[::-1]), strict=True))
        free = iter(sorted(set(range(num_clusters)) - set(places.values())))
        order = [places[j] if j in places else next(free) for j in range(k)]
        centres[value, order] = found
    return Clusters(centres)
