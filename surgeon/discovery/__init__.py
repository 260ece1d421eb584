"""Pseudo bias labels where there are none."""

from __future__ import annotations

from surgeon.discovery.clusters import Clusters, find_clusters

__all__ = ["Clusters", "find_clusters"]
