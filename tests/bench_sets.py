"""Sets of benchmarks made and compared, for the tests of each."""

from __future__ import annotations

import torch

from surgeon.benchmarks.protocol import Setting
from surgeon.benchmarks.sets import SETS

PARTS = ("train", "fit", "select", "report")
# Digits of each class in MNIST's two files.
MNIST = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}


def make(name, *, seed=0, **options):
    return SETS[name](Setting(benchmark=name, seed=seed, **options))


def same(a, b):
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("images", "target", "biases"))


def joint_counts(target, values):
    """Count the rows where both biases, the first, the second and neither are the target's own."""
    left, right = (values == target[:, None]).T
    return [int((a & b).sum()) for a in (left, ~left) for b in (right, ~right)]
