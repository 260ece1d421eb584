"""Biased MNIST: the colour of the background goes with the digit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from surgeon.benchmarks.colours import paint_ground
from surgeon.benchmarks.protocol import BenchSet, Setting, Training
from surgeon.benchmarks.sets.mnist_frames import divide_for_convolutions

# From here on the network sees nothing but colour, and more passes only fit the exceptions.
_EXTREME = 0.999
_SMALL_TRAINING = Training(
    optimiser="sgd",
    lr=0.1,
    epochs=20,
    batch_size=128,
    weight_decay=1e-4,
    schedule="one-cycle",
)
_PAPER_TRAINING = Training(
    optimiser="sgd", lr=0.1, epochs=80, batch_size=100, weight_decay=1e-4, schedule="steps"
)


def biased_mnist(setting: Setting) -> BenchSet:
    """Make white digits on ReBias's ten colours; `rho` is 0.99 unless given.

    The small scale averages 2 x 2 pixels and trains a small network on half the digits (20 epochs,
    14 from rho 0.999 on); `divide_for_convolutions` says who gets which digits.

    Raises:
        LabelError: MNIST is not there.
        OptionError: The setting cannot be honoured.

    Source:
        Bahng and others, Learning de-biased representations with biased representations, ICML 2020;
        the training of IRENE, VCBA and FFW at the paper's scale.
    """
    rho = 0.99 if setting.rho is None else setting.rho
    divided = divide_for_convolutions(setting, rho, _paint)
    return divided.bench_set(*net_and_training(setting, rho))


def net_and_training(setting: Setting, rho: float) -> tuple[str, Training]:
    """Return the convolutional network of a scale, and how it is trained at a correlation."""
    if setting.scale == "paper":
        return setting.net or "surgeon_simple_conv_net", _PAPER_TRAINING
    epochs = 14 if rho >= _EXTREME else 20
    return setting.net or "surgeon_small_conv_net", replace(_SMALL_TRAINING, epochs=epochs)


def _paint(images: np.ndarray, values: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return paint_ground(images, values[:, 0])
