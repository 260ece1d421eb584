"""Corrupted CIFAR-10: the kind of corruption goes with the class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from surgeon.benchmarks.corruptions import CORRUPTIONS, corrupt
from surgeon.benchmarks.dealing import (
    block_labels,
    block_labels_of,
    draw_and_rest,
    own_shares,
    stratified_draw,
)
from surgeon.benchmarks.protocol import BenchSet, Part, Setting, Training
from surgeon.benchmarks.sets.parts import fit_and_select, labelled_rows, make_part
from surgeon.benchmarks.sources import CIFAR_NAMES, Source, cifar10

_TRAIN, _LABELLED, _REPORT = 10_000, 6_000, 5_000
_UNBIASED = 0.1
SMALL_TRAINING = Training(
    optimiser="adam",
    lr=1e-3,
    epochs=30,
    batch_size=128,
    weight_decay=1e-4,
    schedule="cosine",
    augment="crop-flip",
)
_PAPER_TRAINING = replace(SMALL_TRAINING, epochs=200, batch_size=256)


def corrupted_cifar10(setting: Setting) -> BenchSet:
    """Corrupt CIFAR-10, each class mostly in its own way; `rho` is 0.95 unless given.

    Airplane to truck own, in this order: brightness, contrast, Gaussian noise, fog, elastic,
    Gaussian blur, defocus blur, impulse noise, saturate, pixelate; all at severity 5 of 5. Counts
    are dealt in blocks, in the order of the data set.

    small: 10,000 training images drawn within the classes train a ResNet-20; 6,000 others are
    labelled, without correlation (5,000 fit, 1,000 select), or as many of the other 40,000 as
    `rows` says; the report rows are 5,000 test images, drawn likewise, without correlation.

    paper: all 50,000 training images train a ResNet-18; the test set, without correlation, is
    divided 60 / 20 / 20 by the seed.

    Raises:
        LabelError: CIFAR-10 is not there.
        OptionError: The setting cannot be honoured.

    Source:
        Nam and others, Learning from failure, NeurIPS 2020. The ten kinds are, as far as they are
        known, those of Lee and others, Learning debiased representation via disentangled feature
        augmentation, NeurIPS 2021, whose files FFW uses, with fog in the place of frost, which
        needs photographs. FFW's ResNet-18 has the stem for large images, ours the one for CIFAR.
    """
    rho = 0.95 if setting.rho is None else setting.rho
    train, test = cifar10("train"), cifar10("test")
    small = setting.scale == "small"
    asked = own_shares(_UNBIASED if setting.label_rho is None else setting.label_rho)
    even = own_shares(_UNBIASED)
    rng = np.random.default_rng([setting.seed, 0])
    if small:
        seen, pool = draw_and_rest(train.labels, _TRAIN, _LABELLED, rng)
        source, core, most = train, _LABELLED, len(pool)
        # Each deal on its own, so that more rows leave the first ones as they are.
        kinds = np.concatenate(
            [block_labels_of(train.labels, rows, [asked]) for rows in (pool[:core], pool[core:])]
        )
        rows = stratified_draw(test.labels, _REPORT, np.random.default_rng([setting.seed, 1]))
        shown = block_labels_of(test.labels, rows, [even])
    else:
        seen, pool = np.arange(len(train)), rng.permutation(len(test))
        source, core, most = test, 4 * len(test) // 5, 4 * len(test) // 5
        kinds = block_labels(test.labels, asked)[pool]
        rows = pool[core:]
        shown = block_labels(test.labels, even)[rows]
    count = labelled_rows(setting, core, most)

    def part(source: Source, rows: np.ndarray, kinds: np.ndarray) -> Part:
        # Test images get seeds of their own.
        seeds = rows + len(train) * (source is test)
        pixels = corrupt(source.read(rows), kinds[:, 0], seeds, seed=setting.seed)
        return make_part(pixels, source.labels[rows], kinds)

    report = part(test, rows, shown)
    labelled = part(source, pool[:count], kinds[:count])
    fit, select = fit_and_select(labelled, 1 / 6 if small else 1 / 4)
    return BenchSet(
        source=train.sentence,
        target_names=CIFAR_NAMES,
        bias_names={"bias": tuple(CORRUPTIONS)},
        train=part(train, seen, block_labels_of(train.labels, seen, [own_shares(rho)])),
        fit=fit,
        select=select,
        report=report,
        net=setting.net or ("surgeon_cifar_resnet20" if small else "surgeon_cifar_resnet18"),
        training=SMALL_TRAINING if small else _PAPER_TRAINING,
    )
