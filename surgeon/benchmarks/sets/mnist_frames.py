"""The two ways in which coloured-digit protocols divide MNIST; a set adds its paint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.benchmarks.colours import halve
from surgeon.benchmarks.dealing import (
    block_labels,
    block_labels_of,
    colour_labels,
    own_shares,
    stratified_draw,
)
from surgeon.benchmarks.protocol import BenchSet, Part, Setting, Training
from surgeon.benchmarks.sets.parts import fit_and_select, labelled_rows, make_part
from surgeon.benchmarks.sources import Source, mnist

DIGITS = tuple(map(str, range(10)))
# From grey digits `[n, 28, 28]`, bias values `[n, K]` and a generator to `[n, 28, 28, 3]`.
Paint = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
_UNBIASED = 0.1


@dataclass(frozen=True, eq=False)
class Divided:
    """The four parts of a set, and which digits they are."""

    source: str
    train: Part
    fit: Part
    select: Part
    report: Part

    def bench_set(
        self, net: str, training: Training, columns: tuple[str, ...] = ("bias",)
    ) -> BenchSet:
        """Add the network, its training and the names of the bias columns."""
        return BenchSet(
            source=self.source,
            target_names=DIGITS,
            bias_names=dict.fromkeys(columns, DIGITS),
            train=self.train,
            fit=self.fit,
            select=self.select,
            report=self.report,
            net=net,
            training=training,
        )


def divide_for_convolutions(setting: Setting, rho: float, paint: Paint) -> Divided:
    """Divide as for Biased MNIST, colours dealt by count.

    small: 14 x 14 pixels. MNIST-train is permuted by the seed; the first half trains the vanilla
    network at correlation `rho`, the next tenth is labelled (6,000: 5,000 fit, 1,000 select), or as
    many of the second half as `rows` says. The report rows are half of MNIST-test (5,000), drawn by
    the seed within the classes: the first and the last 5,000 test digits come from different
    writers and differ much in difficulty, so neither half stands for the test set. They depend on
    nothing but the seed.

    paper: 28 x 28 pixels. All of MNIST-train trains the network; the labelled rows are the same
    digits in other colours, 60 % fit and 20 % select; the report rows are MNIST-test.

    Args:
        setting: `label_rho` None colours the labelled rows without regard to the digit.
        rho: Share of the training digits in their own colour.
        paint: Bias values have one column.
    """
    train, test = mnist("train"), mnist("test")
    small = setting.scale == "small"
    label_rho = _UNBIASED if setting.label_rho is None else setting.label_rho
    num, rng = len(train), np.random.default_rng(setting.seed)
    # The order of the draws is that of the first published runs: do not change it.
    if small:
        order = rng.permutation(num)
        seen, pool, core = order[: num // 2], order[num // 2 :], num // 10
        dealt = colour_labels(train.labels[seen], rho, rng)
        count = labelled_rows(setting, core, len(pool))
        labels = colour_labels(train.labels[pool[:core]], label_rho, rng)
        if count > core:
            more = colour_labels(train.labels[pool[core:]], label_rho, _stream(setting, 4))
            labels = np.concatenate([labels, more])
    else:
        seen = np.arange(num)
        dealt = colour_labels(train.labels, rho, rng)
        pool = rng.permutation(num)
        core = 4 * num // 5
        count = labelled_rows(setting, core, core)
        labels = colour_labels(train.labels[pool], label_rho, rng)
    chosen = pool[:count]
    draw = _stream(setting, 3)
    rows = stratified_draw(test.labels, len(test) // 2, draw) if small else np.arange(len(test))
    shown = colour_labels(test.labels[rows], _UNBIASED, draw)

    def part(source: Source, rows: np.ndarray, values: np.ndarray, stream: int) -> Part:
        pixels = paint(source.read(rows), values[:, None], _stream(setting, stream))
        return make_part(halve(pixels) if small else pixels, source.labels[rows], values)

    report = part(test, rows, shown, 2)
    labelled = part(train, chosen, labels[:count], 1)
    fit, select = fit_and_select(labelled, 1 / 6 if small else 1 / 4)
    again = "" if small else "; the labelled digits are the training digits in other colours"
    return Divided(train.sentence + again, part(train, seen, dealt, 0), fit, select, report)


def divide_for_perceptrons(setting: Setting, rhos: Sequence[float], paint: Paint) -> Divided:
    """Divide as for LfF's Colored MNIST, colours dealt in blocks; 28 x 28 pixels at both scales.

    small: five sixths of MNIST-train (50,000), permuted by the seed, train the vanilla network;
    of the other 10,000 the first 6,000 are labelled (5,000 fit, 1,000 select), or as many as `rows`
    says; the report rows are MNIST-test.

    paper: all of MNIST-train trains the network; MNIST-test, without correlation, is divided
    60 / 20 / 20 by the seed.

    Args:
        setting: `label_rho` None deals the labelled rows without correlation.
        rhos: Share of the training digits in their own colour, one per bias.
        paint: Bias values have one column per bias.
    """
    train, test = mnist("train"), mnist("test")
    small = setting.scale == "small"
    shares = [own_shares(rho) for rho in rhos]
    even = [own_shares(_UNBIASED) for _ in rhos]
    asked = [own_shares(setting.label_rho) for _ in rhos] if setting.label_rho is not None else even
    rng, num = _stream(setting, 5), len(train)
    if small:
        order = rng.permutation(num)
        seen, pool = order[: 5 * num // 6], order[5 * num // 6 :]
        core, most, source = 6 * len(pool) // 10, len(pool), train
        # Each deal on its own, so that more rows leave the first ones as they are.
        labels = np.concatenate(
            [block_labels_of(train.labels, rows, asked) for rows in (pool[:core], pool[core:])]
        )
        rows = np.arange(len(test))
    else:
        seen, pool = np.arange(num), rng.permutation(len(test))
        core = most = 4 * len(test) // 5
        source, rows = test, pool[core:]
        pool = pool[:core]
        labels = block_labels(test.labels, *asked)[pool]
    dealt = block_labels_of(train.labels, seen, shares)
    shown = block_labels(test.labels, *even)[rows]
    count = labelled_rows(setting, core, most)

    def part(source: Source, rows: np.ndarray, values: np.ndarray, stream: int) -> Part:
        pixels = paint(source.read(rows), values, _stream(setting, stream))
        return make_part(pixels, source.labels[rows], values)

    report = part(test, rows, shown, 2)
    labelled = part(source, pool[:count], labels[:count], 1)
    fit, select = fit_and_select(labelled, 1 / 6 if small else 1 / 4)
    return Divided(train.sentence, part(train, seen, dealt, 0), fit, select, report)


def _stream(setting: Setting, number: int) -> np.random.Generator:
    """Return a generator of its own for one purpose, so that no part depends on another's size."""
    return np.random.default_rng([setting.seed, number])
