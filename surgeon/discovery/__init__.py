"""Pseudo bias labels where there are none, by registry key."""

from __future__ import annotations

from surgeon.discovery.base import Discovery, PseudoLabels
from surgeon.discovery.by_cluster import ByCluster
from surgeon.discovery.discover import (
    Discovered,
    agreement_with,
    check_labels_out,
    discover,
    write_labels,
)
from surgeon.discovery.voronoi import Voronoi

DISCOVERIES: dict[str, type[Discovery]] = {"voronoi": Voronoi, "clusters": ByCluster}

__all__ = [
    "DISCOVERIES",
    "ByCluster",
    "Discovered",
    "Discovery",
    "PseudoLabels",
    "Voronoi",
    "agreement_with",
    "check_labels_out",
    "discover",
    "write_labels",
]
