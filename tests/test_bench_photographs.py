"""Photographs by a stand-in for CIFAR-10: corruptions and grey where their labels say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surgeon.benchmarks.corruptions import CORRUPTIONS
from surgeon.benchmarks.sets import cifar10s, corrupted_cifar10
from surgeon.benchmarks.sources import Source
from tests.bench_sets import PARTS, make, same


@pytest.fixture
def small_cifar(monkeypatch):
    """Put a tenth of the images in place of CIFAR-10, all of them in colour."""

    def cifar10(part):
        num, base = {"train": (1000, 0), "test": (500, 5000)}[part]

        def read(rows):
            return np.stack(
                [
                    np.random.default_rng(base + row).integers(0, 256, (32, 32, 3), np.uint8)
                    for row in rows
                ]
            )

        return Source(np.arange(num) % 10, "a stand-in", read)

    for module, report in ((corrupted_cifar10, 200), (cifar10s, 100)):
        module = __import__(f"surgeon.benchmarks.sets.{module.__name__}", fromlist=["x"])
        monkeypatch.setattr(module, "cifar10", cifar10)
        monkeypatch.setattr(module, "_TRAIN", 400)
        monkeypatch.setattr(module, "_LABELLED", 120)
        monkeypatch.setattr(module, "_REPORT", report)
    return cifar10


def keys(part):
    return [pixels.numpy().tobytes() for pixels in part.images]


def test_corrupted_images_are_where_their_labels_say(small_cifar):
    bench = make("corrupted-cifar10")
    assert [len(getattr(bench, part)) for part in PARTS] == [400, 80, 40, 200]
    assert bench.bias_names["bias"] == tuple(CORRUPTIONS)
    everything = [key for part in PARTS for key in keys(getattr(bench, part))]
    assert len(set(everything)) == len(everything)
    counts = torch.bincount(bench.train.target)
    assert counts.tolist() == [40] * 10
    assert (bench.train.biases == bench.train.target[:, None]).float().mean() == 0.95
    # Contrast leaves a tenth of the range; every other kind leaves most of noise's.
    flat = bench.train.images.float().std((1, 2, 3)) < 15
    assert torch.equal(flat, bench.train.biases[:, 0] == list(CORRUPTIONS).index("contrast"))
    again, moved = make("corrupted-cifar10"), make("corrupted-cifar10", rho=0.5, rows=60)
    assert all(same(getattr(bench, part), getattr(again, part)) for part in PARTS)
    assert same(bench.report, moved.report)
    assert keys(moved.fit) == keys(bench.fit)[: len(moved.fit)]
    assert not same(bench.report, make("corrupted-cifar10", seed=1).report)
    paper = make("corrupted-cifar10", scale="paper")
    assert [len(getattr(paper, part)) for part in PARTS] == [1000, 300, 100, 100]


def test_grey_images_are_those_of_their_domain(small_cifar):
    bench = make("cifar10s")
    assert [len(getattr(bench, part)) for part in PARTS] == [400, 80, 40, 200]
    for part in map(bench.__getattribute__, PARTS):
        is_grey = (part.images.float().std(1) == 0).all(2).all(1)
        assert torch.equal(is_grey, part.biases[:, 0] == 1)
    own = 1 - bench.train.target % 2
    for value in range(10):
        rows = bench.train.target == value
        assert int((bench.train.biases[rows, 0] == own[rows]).sum()) == 38
    half = len(bench.report) // 2
    colour, grey = bench.report.images[:half], bench.report.images[half:]
    weighted = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    assert (weighted - grey[:, 0]).abs().max() <= 1
    assert not set(keys(bench.fit)) & set(keys(bench.train) + keys(bench.select))
    paper = make("cifar10s", scale="paper")
    assert [len(getattr(paper, part)) for part in PARTS] == [1000, 600, 200, 1000]
    assert "training images" in paper.source
    assert float((paper.fit.biases == 1).float().mean()) == pytest.approx(0.5, abs=0.02)
