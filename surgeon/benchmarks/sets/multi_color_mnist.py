"""Multi-Color MNIST: the colours of the left and of the right half both go with the digit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from surgeon.benchmarks.colours import LFF, jitter, paint_halves
from surgeon.benchmarks.protocol import BenchSet, Setting, Training
from surgeon.benchmarks.sets.mnist_frames import divide_for_perceptrons
from surgeon.errors import OptionError

_LEFT, _RIGHT = 0.99, 0.95
_DEVIATION = 0.005


def multi_color_mnist(setting: Setting) -> BenchSet:
    """Make digits on two colours, the left one at 0.99 and the right one at 0.95.

    Two bias columns, `left` and `right`; `label_rho` is meant for each of them.
    `divide_for_perceptrons` says who gets which digits.

    Raises:
        LabelError: MNIST is not there.
        OptionError: The setting cannot be honoured; `rho` is fixed here.

    Source:
        Li and others, Discover and mitigate unknown biases with debiasing alternate networks
        (DebiAN), ECCV 2022; used by VCBA and FFW.
    """
    if setting.rho is not None:
        raise OptionError(
            f"--rho: {setting.benchmark} has two fixed correlations, {_LEFT} left and {_RIGHT} "
            "right; leave the option out"
        )
    divided = divide_for_perceptrons(setting, [_LEFT, _RIGHT], _paint)
    net = setting.net or "surgeon_mlp100"
    training = Training(optimiser="adam", lr=1e-3, epochs=100, batch_size=256, weight_decay=1e-4)
    return divided.bench_set(net, training, ("left", "right"))


def multi_color_mnist_left(setting: Setting) -> BenchSet:
    """Make the same rows and network, with the left colour to remove and the right one to watch.

    Raises:
        LabelError: MNIST is not there.
        OptionError: The setting cannot be honoured.
    """
    return replace(multi_color_mnist(setting), audited=("right",))


def _paint(images: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    means = np.concatenate([LFF[values[:, 0]], 1 - LFF[values[:, 1]]], axis=1)
    colours = jitter(means, _DEVIATION, rng)
    return paint_halves(images, colours[:, :3], colours[:, 3:])
