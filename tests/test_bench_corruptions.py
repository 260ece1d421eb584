"""Corruptions: each of its own image and seeds alone, and what it is called."""

from __future__ import annotations

import numpy as np
import pytest

from surgeon.benchmarks.corruptions import CORRUPTIONS, corrupt


def test_a_corruption_depends_on_its_own_image_and_seeds_alone():
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    kinds, seeds = np.repeat(np.arange(10), 2), np.arange(20)
    state = np.random.get_state()[1].copy()
    whole = corrupt(images, kinds, seeds, seed=0)
    assert (np.random.get_state()[1] == state).all()
    some = [3, 7, 8, 14]
    assert (corrupt(images[some], kinds[some], seeds[some], seed=0) == whole[some]).all()
    changed = (whole != images).mean((1, 2, 3))
    assert (changed > 0.05).all()
    other = corrupt(images, kinds, seeds, seed=1)
    differ = {
        name for i, name in enumerate(CORRUPTIONS) if (other != whole)[2 * i : 2 * i + 2].any()
    }
    assert differ == {"gaussian-noise", "fog", "elastic", "impulse-noise"}


def test_corruptions_do_what_they_are_called():
    flat = np.full((1, 32, 32, 3), 100, np.uint8)
    flat[0, :16] = (180, 100, 60)
    out = {
        name: corrupt(flat, np.array([i]), np.array([0]), seed=0)[0].astype(float)
        for i, name in enumerate(CORRUPTIONS)
    }
    assert (out["brightness"][20, 20] == [176, 176, 176]).all()
    assert out["gaussian-noise"][20:].std() == pytest.approx(25.5, rel=0.1)
    hit = (out["impulse-noise"] != flat[0]).mean()
    assert hit == pytest.approx(0.07, abs=0.02)
    assert set(np.unique(out["impulse-noise"][20:])) == {0, 100, 255}
    assert out["saturate"][0, 0].max() - out["saturate"][0, 0].min() > 120
    for name in ("gaussian-blur", "defocus-blur", "elastic", "pixelate"):
        assert (out[name][28] == 100).all()
        assert ((out[name][15:17, 5, 0] != 100) & (out[name][15:17, 5, 0] != 180)).any() or (
            name in ("elastic", "pixelate")
        )
    assert np.ptp(out["contrast"][:, :, 0]) <= 0.15 * 80 + 1
