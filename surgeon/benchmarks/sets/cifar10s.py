"""CIFAR-10S: five classes are mostly in colour, five mostly grey."""

from __future__ import annotations

import numpy as np
from PIL import Image

from surgeon.benchmarks.dealing import draw_and_rest, stratified_draw
from surgeon.benchmarks.protocol import BenchSet, Part, Setting, Training
from surgeon.benchmarks.sets.corrupted_cifar10 import SMALL_TRAINING
from surgeon.benchmarks.sets.parts import fit_and_select, labelled_rows, make_part
from surgeon.benchmarks.sources import CIFAR_NAMES, Source, cifar10

_TRAIN, _LABELLED, _REPORT = 10_000, 6_000, 2_500
_COLOUR, _GREY = 0, 1
_PAPER_TRAINING = Training(
    optimiser="sgd",
    lr=0.1,
    epochs=200,
    batch_size=128,
    weight_decay=5e-4,
    schedule="steps",
    augment="crop-flip",
)


def cifar10s(setting: Setting) -> BenchSet:
    """Turn images grey: automobile, cat, dog, horse, truck stay in colour, the others do not.

    `rho`, 0.95 unless given, is the share of a class in its own domain; which images, the seed
    draws. Test images come in colour and again in grey.

    small: 10,000 training images drawn within the classes train a ResNet-20; 6,000 others are
    labelled, half of each class in either domain (5,000 fit, 1,000 select), or as many of the other
    40,000 as `rows` says; the report rows are 2,500 test images in both domains.

    paper: all 50,000 training images train a ResNet-18; the labelled rows are the same images, half
    of each class in either domain, 60 % fit and 20 % select; the report rows are the test set in
    both domains.

    Raises:
        LabelError: CIFAR-10 is not there.
        OptionError: The setting cannot be honoured.

    Source:
        Wang and others, Towards fairness in visual recognition, CVPR 2020; used by GBA, which fits
        on the skewed rows themselves. Ours are drawn by the seed, theirs once.
    """
    rho = 0.95 if setting.rho is None else setting.rho
    label_rho = 0.5 if setting.label_rho is None else setting.label_rho
    train, test = cifar10("train"), cifar10("test")
    small = setting.scale == "small"
    seed = setting.seed
    rng = np.random.default_rng([seed, 0])
    if small:
        seen, pool = draw_and_rest(train.labels, _TRAIN, _LABELLED, rng)
        core, most, num = _LABELLED, len(pool), _REPORT
    else:
        seen, pool = np.arange(len(train)), rng.permutation(len(train))
        core = most = 4 * len(train) // 5
        num = len(test)
    count = labelled_rows(setting, core, most)
    # Each deal on its own, so that more rows leave the first ones as they are.
    domains = np.concatenate(
        [
            domain_labels(train.labels[rows], label_rho, np.random.default_rng([seed, stream]))
            for stream, rows in ((1, pool[:core]), (2, pool[core:]))
        ]
    )
    rows = stratified_draw(test.labels, num, np.random.default_rng([seed, 3]))
    report = _part(test, np.tile(rows, 2), np.repeat([_COLOUR, _GREY], num))
    labelled = _part(train, pool[:count], domains[:count])
    fit, select = fit_and_select(labelled, 1 / 6 if small else 1 / 4)
    dealt = domain_labels(train.labels[seen], rho, np.random.default_rng([seed, 4]))
    again = "" if small else "; the labelled images are training images in new domains"
    return BenchSet(
        source=train.sentence + again,
        target_names=CIFAR_NAMES,
        bias_names={"bias": ("colour", "grey")},
        train=_part(train, seen, dealt),
        fit=fit,
        select=select,
        report=report,
        net=setting.net or ("surgeon_cifar_resnet20" if small else "surgeon_cifar_resnet18"),
        training=SMALL_TRAINING if small else _PAPER_TRAINING,
    )


def domain_labels(target: np.ndarray, rho: float, rng: np.random.Generator) -> np.ndarray:
    """Deal domains: of each class the share `rho`, drawn at random, its own.

    Args:
        target: `[N]` classes; odd ones own colour (0), even ones grey (1).
        rho: Share in the own domain.
        rng: Draws.

    Returns:
        `[N]` int64 domains.
    """
    own = 1 - target % 2
    domains = 1 - own
    for value in np.unique(target):
        rows = rng.permutation(np.flatnonzero(target == value))
        kept = rows[: round(len(rows) * rho)]
        domains[kept] = own[kept]
    return domains


def to_grey(images: np.ndarray) -> np.ndarray:
    """Turn `[N, H, W, 3]` uint8 grey with Pillow's weights, copied to three channels."""
    flat = Image.fromarray(images.reshape(-1, images.shape[2], 3)).convert("L")
    return np.repeat(np.asarray(flat).reshape(images.shape[:3])[..., None], 3, axis=3)


def _part(source: Source, rows: np.ndarray, domains: np.ndarray) -> Part:
    pixels = source.read(rows)
    grey = domains == _GREY
    if grey.any():
        pixels[grey] = to_grey(pixels[grey])
    return make_part(pixels, source.labels[rows], domains)
