"""Who gets which bias value: the published counts, spread evenly, drawn in proportion."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.benchmarks.dealing import (
    block_labels,
    block_labels_of,
    colour_labels,
    own_shares,
    stratified_draw,
)
from tests.bench_sets import MNIST, joint_counts


def test_published_counts_of_blocks():
    train, test = (np.repeat(np.arange(10), MNIST[part]) for part in ("train", "test"))
    values = block_labels(train, own_shares(0.99), own_shares(0.95))
    assert joint_counts(train, values) == [56_430, 2_972, 573, 25]
    values = block_labels(test, own_shares(0.1), own_shares(0.1))
    assert joint_counts(test, values) == [100, 900, 904, 8_096]
    cifar = np.repeat(np.arange(10), 5000)
    for rho, own, others in ((0.95, 4750, {27, 28}), (0.995, 4975, {2, 3})):
        counts = np.bincount(block_labels(cifar, own_shares(rho))[cifar == 3, 0])
        assert counts[3] == own
        assert set(np.delete(counts, 3)) == others


def test_blocks_lie_in_the_order_of_the_rows():
    target = np.arange(2000) % 2
    values = block_labels(target, own_shares(0.9, 2))[:, 0]
    for own in (0, 1):
        assert values[target == own].tolist() == [0] * (900, 100)[own] + [1] * (100, 900)[own]
    rows = np.random.default_rng(0).permutation(2000)
    assert (block_labels_of(target, rows, [own_shares(0.9, 2)])[:, 0] == values[rows]).all()


@pytest.mark.parametrize(
    ("rho", "conflicts"), [(0.99, 606), (0.995, 305), (0.997, 184), (0.999, 63)]
)
def test_published_counts_of_colours(rho, conflicts):
    target = np.repeat(np.arange(10), MNIST["train"])
    values = colour_labels(target, rho, np.random.default_rng(0))
    assert int((values != target).sum()) == conflicts
    for own in range(10):
        counts = np.delete(np.bincount(values[target == own], minlength=10), own)
        assert counts.max() <= -(-counts.sum() // 9)
    unbiased = colour_labels(target, 0.1, np.random.default_rng(0))
    assert int((unbiased == target).sum()) == 5_996


def test_a_draw_keeps_the_proportions():
    target = np.repeat(np.arange(10), MNIST["test"])
    rows = stratified_draw(target, 5000, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 5000
    assert np.abs(np.bincount(target[rows]) - np.array(MNIST["test"]) / 2).max() <= 0.5
    assert len(stratified_draw(target, 1, np.random.default_rng(0))) == 1
