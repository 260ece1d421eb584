"""Colored MNIST of Learning from failure: the colour of the digit goes with the digit."""

from __future__ import annotations

import numpy as np

from surgeon.benchmarks.colours import LFF, jitter, paint_digit
from surgeon.benchmarks.protocol import BenchSet, Setting, Training
from surgeon.benchmarks.sets.mnist_frames import divide_for_perceptrons
from surgeon.errors import OptionError

# Standard deviation of a colour channel by severity; LfF's tables are of severity 4.
DEVIATIONS = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}


def colored_mnist(setting: Setting, *, severity: int = 4) -> BenchSet:
    """Make digits in ten colours on black; `rho` is 0.95 unless given.

    Args:
        setting: One cell; `divide_for_perceptrons` says who gets which digits.
        severity: 1 to 5; the higher, the less a colour varies.

    Raises:
        LabelError: MNIST is not there.
        OptionError: The setting cannot be honoured.

    Source:
        Nam and others, Learning from failure, NeurIPS 2020; used by GBA, whose severity is not
        published.
    """
    if severity not in DEVIATIONS:
        raise OptionError(f"severity: found {severity}, expected one of {list(DEVIATIONS)}")

    def paint(images: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return paint_digit(images, jitter(LFF[values[:, 0]], DEVIATIONS[severity], rng))

    rho = 0.95 if setting.rho is None else setting.rho
    divided = divide_for_perceptrons(setting, [rho], paint)
    net = setting.net or "surgeon_mlp100"
    training = Training(optimiser="adam", lr=1e-3, epochs=100, batch_size=256)
    return divided.bench_set(net, training)
