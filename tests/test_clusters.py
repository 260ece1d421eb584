"""Clusters of each class in feature space, paired between classes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from surgeon.discovery.clusters import find_clusters


def blobs(classes=3, kinds=4, rows=30, noise=0.05):
    """Features of kinds that are shared by all classes, around means of their own."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(classes, 16, generator=generator)
    shifts = torch.randn(kinds, 16, generator=generator)
    target = torch.arange(classes).repeat_interleave(kinds * rows)
    kind = torch.arange(kinds).repeat_interleave(rows).repeat(classes)
    x = means[target] + shifts[kind] + noise * torch.randn(len(kind), 16, generator=generator)
    order = torch.randperm(len(kind), generator=generator)
    return x[order], target[order], kind[order]


def test_a_number_means_the_same_in_every_class():
    x, target, kind = blobs()
    found = find_clusters(x, target, 3, 4, seed=0).assign(x, target)
    names = [found[kind == value].unique() for value in range(4)]
    assert all(len(name) == 1 for name in names)
    assert len(torch.cat(names).unique()) == 4


def test_new_rows_go_to_the_nearest_cluster_of_their_class():
    x, target, _ = blobs()
    clusters = find_clusters(x, target, 3, 4, seed=0)
    found = clusters.assign(x, target)
    # Length says nothing, direction all.
    assert torch.equal(clusters.assign(x * torch.linspace(0.5, 2, len(x))[:, None], target), found)
    for row in (0, 7, 300):
        distances = (normalize(x[row : row + 1]) - clusters.centres[target[row]]).norm(dim=1)
        assert int(distances.argmin()) == int(found[row])
    other = clusters.assign(x, (target + 1) % 3)
    assert not torch.equal(other, found)


def test_a_class_of_few_rows_has_a_cluster_for_each_and_a_class_of_none_none():
    x, target, _ = blobs()
    few = (target == 1).nonzero().flatten()[:2]
    kept = torch.cat([(target == 0).nonzero().flatten(), few])
    clusters = find_clusters(x[kept], target[kept], 3, 4, seed=0)
    held = ~clusters.centres.isnan().any(2)
    assert held.sum(1).tolist() == [4, 2, 0]
    assert sorted(clusters.assign(x[few], target[few]).tolist()) == sorted(
        held[1].nonzero().flatten().tolist()
    )


def test_more_clusters_than_the_first_class_has():
    x, target, _ = blobs()
    first = (target == 0).nonzero().flatten()[:2]
    kept = torch.cat([first, (target == 2).nonzero().flatten()])
    clusters = find_clusters(x[kept], target[kept], 3, 4, seed=0)
    assert (~clusters.centres.isnan().any(2)).sum(1).tolist() == [2, 0, 4]
    assert len(clusters.assign(x[kept[2:]], target[kept[2:]]).unique()) == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_clusters(seed):
    x, target, _ = blobs(noise=1.5)
    again = [find_clusters(x, target, 3, 6, seed=seed).centres for _ in range(2)]
    assert torch.equal(*again)
    other = find_clusters(x, target, 3, 6, seed=seed + 2).centres
    assert not torch.equal(other, again[0])
