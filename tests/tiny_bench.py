"""A benchmark of bright halves that runs in seconds, for tests of what runs benchmarks."""

from __future__ import annotations

import torch

from surgeon.benchmarks.protocol import BenchSet, Part, Setting, Training

SETTING = Setting(benchmark="tiny", seed=1)
RECIPE = Training(optimiser="sgd", lr=0.1, epochs=2, batch_size=32, schedule="one-cycle")


def part_of(n, share, seed, side=8):
    """Draw a bright upper or lower half, the target, on a red or blue ground, the bias."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < share
    bias = torch.where(same, target, 1 - target)
    shape = (n, 3, side, side)
    images = torch.randint(90, shape, dtype=torch.uint8, generator=generator)
    for i in range(n):
        images[i, 2 * bias[i]] += 120
        images[i, 1, : side // 2] += 100 * (target[i] == 0).byte()
        images[i, 1, side // 2 :] += 100 * (target[i] == 1).byte()
    return Part(images, target, bias[:, None])


def tiny_set(setting):
    return BenchSet(
        source="bright halves",
        target_names=("up", "down"),
        bias_names={"ground": ("red", "blue")},
        train=part_of(160, 0.95, 10 * setting.seed),
        fit=part_of(setting.rows or 80, 0.5, 10 * setting.seed + 1),
        select=part_of(40, 0.5, 10 * setting.seed + 2),
        report=part_of(80, 0.5, 10 * setting.seed + 3),
        net=setting.net or "surgeon_small_conv_net",
        training=RECIPE,
    )
