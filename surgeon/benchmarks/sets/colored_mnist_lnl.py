"""Colored MNIST of Learning not to learn: every training digit has its class's colour, roughly."""

from __future__ import annotations

import numpy as np

from surgeon.benchmarks.colours import LNL, jitter, paint_digit
from surgeon.benchmarks.protocol import BenchSet, Setting
from surgeon.benchmarks.sets.biased_mnist import net_and_training
from surgeon.benchmarks.sets.mnist_frames import divide_for_convolutions
from surgeon.errors import OptionError


def colored_mnist_lnl(setting: Setting, *, variance: float = 0.02) -> BenchSet:
    """Make digits in ten jittered colours on black; all training digits in their own (`rho` 1).

    The bias is which mean colour was assigned, not the colour drawn around it. Digits, sizes and
    networks as for Biased MNIST.

    Args:
        setting: One cell.
        variance: Of each channel in 0..1; the published files go from 0.02 to 0.05.

    Raises:
        LabelError: MNIST is not there.
        OptionError: The setting cannot be honoured.

    Source:
        Kim and others, Learning not to learn, CVPR 2019; used by CSAD. We deal the mean colours of
        unbiased rows by count instead of drawing them, and train the networks of Biased MNIST.
    """
    if not 0 < variance < 1:
        raise OptionError(f"variance: found {variance}, expected a number between 0 and 1")

    def paint(images: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return paint_digit(images, jitter(LNL[values[:, 0]], variance**0.5, rng))

    rho = 1.0 if setting.rho is None else setting.rho
    divided = divide_for_convolutions(setting, rho, paint)
    return divided.bench_set(*net_and_training(setting, rho))
