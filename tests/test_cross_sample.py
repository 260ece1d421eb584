"""Random walks over a batch, and what scores of pairs tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from surgeon.cross_sample import pair_information, random_walk, walk_likeness


def embeddings(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=1)


def test_a_walk_is_the_sum_of_its_steps():
    x, sharpness = embeddings(), torch.tensor(3.0, dtype=torch.float64)
    edges = (3 * x @ x.T).softmax(1)
    edges = (edges + edges.T) / 2
    walks, step = torch.zeros(7, 7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    for _ in range(200):
        walks += 0.5 * step
        step = 0.5 * step @ edges
    walks = (walks + walks.T) / 2
    expected = walks / walks.sum(1, keepdim=True)
    found = random_walk(x, sharpness)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(7, dtype=torch.float64))


def test_likeness_compares_walk_i_with_walk_j():
    first, second = (
        random_walk(embeddings(seed=s), torch.tensor(3.0, dtype=torch.float64)) for s in (0, 1)
    )
    found = walk_likeness(first, second)
    for i, j in ((0, 0), (2, 5), (5, 2)):
        terms = [
            a * math.log(b) + b * math.log(a)
            for a, b in zip(first[i].tolist(), second[j].tolist(), strict=True)
        ]
        assert float(found[i, j]) == pytest.approx(sum(terms) / 2)
    # A walk is most like itself.
    assert torch.equal(walk_likeness(first, first).argmax(1), torch.arange(7))


def test_information_by_hand_and_its_ends():
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    scores = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, -0.5], [1.0, 0.3, -2.0]])
    ends = {True: [], False: []}
    for i in range(3):
        for j in range(3):
            ends[bool(same[i, j])].append(float(scores[i, j]))
    near = sum(math.exp(-s) for s in ends[True]) / 5
    far = sum(math.exp(s) for s in ends[False]) / 4
    expected = 2 * math.log(2) - math.log(1 + near) - math.log(1 + far)
    assert float(pair_information(scores, same)) == pytest.approx(expected)
    assert float(pair_information(torch.zeros(3, 3), same)) == pytest.approx(0, abs=1e-6)
    sure = torch.where(same, 30.0, -30.0)
    assert float(pair_information(sure, same)) == pytest.approx(2 * math.log(2))
    assert float(pair_information(-sure, same)) < -50
    assert math.isfinite(float(pair_information(scores, torch.ones(3, 3).bool())))
