"""The data sets by name; each is a function from a setting to its rows, network and training."""

from __future__ import annotations

from collections.abc import Callable

from surgeon.benchmarks.protocol import BenchSet, Setting
from surgeon.benchmarks.sets.biased_mnist import biased_mnist
from surgeon.benchmarks.sets.cifar10s import cifar10s
from surgeon.benchmarks.sets.colored_mnist import colored_mnist
from surgeon.benchmarks.sets.colored_mnist_lnl import colored_mnist_lnl
from surgeon.benchmarks.sets.corrupted_cifar10 import corrupted_cifar10
from surgeon.benchmarks.sets.digits import digits
from surgeon.benchmarks.sets.multi_color_mnist import multi_color_mnist, multi_color_mnist_left

SETS: dict[str, Callable[[Setting], BenchSet]] = {
    "biased-mnist": biased_mnist,
    "multi-color-mnist": multi_color_mnist,
    "multi-color-mnist-left": multi_color_mnist_left,
    "colored-mnist": colored_mnist,
    "colored-mnist-lnl": colored_mnist_lnl,
    "corrupted-cifar10": corrupted_cifar10,
    "cifar10s": cifar10s,
    "digits": digits,
}
"""Name to function, in the order in which they are listed."""
