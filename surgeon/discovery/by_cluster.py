"""Clusters of the network's features as values of a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgeon.data import Rows, extract
from surgeon.discovery.base import Discovery, Progress, PseudoLabels
from surgeon.discovery.clusters import find_clusters
from surgeon.options import check_least
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ByCluster(Discovery):
    """Take the cluster of its class that a row falls in as its bias.

    Source:
        ClusterFix (WACV 2024), stage 1; see `find_clusters` for how we differ.
    """

    name: ClassVar[str] = "clusters"

    clusters: int = 8
    """Of each class, and so values of the bias."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("clusters", self.clusters, 2)

    def find(
        self, subject: Subject, rows: Rows, train: Rows, *, progress: Progress | None = None
    ) -> PseudoLabels:
        """Cluster the rows that may be fitted on, and assign all; sure where far from others."""
        fitted = extract(subject, train).features
        found = find_clusters(
            fitted,
            train.groups.target,
            train.groups.num_classes,
            self.clusters,
            seed=self.seed,
        )
        nearest = found.distances(extract(subject, rows).features, rows.groups.target)
        ordered = nearest.sort(1)
        ratio = ordered.values[:, 0] / ordered.values[:, 1].clamp_min(1e-12)
        names = tuple(str(number) for number in range(self.clusters))
        return PseudoLabels(ordered.indices[:, 0], names, 1 - ratio)
