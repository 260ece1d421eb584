"""Digits of the benchmarks: counts, disjoint parts, equal bytes, colours in their place."""

from __future__ import annotations

import gzip
import os
import struct

import numpy as np
import pytest
import torch

from surgeon.benchmarks.colours import LFF, LNL, REBIAS
from surgeon.benchmarks.dealing import block_labels, colour_labels, own_shares
from surgeon.benchmarks.protocol import Setting
from surgeon.benchmarks.sets.colored_mnist_lnl import colored_mnist_lnl
from surgeon.benchmarks.sets.digits import RECIPES
from surgeon.demo import draw_digits
from surgeon.errors import OptionError
from tests.bench_sets import MNIST, PARTS, joint_counts, make, same

NUM = {"train": 1200, "test": 600}
needs_data = pytest.mark.skipif(
    not os.environ.get("SURGEON_DATA"), reason="SURGEON_DATA is not set: the folder with the data"
)


# Coloured digits. A digit of the stand-in shows its position in bits, so that it can be told.

SIDE, BITS = 28, 11


def show(number, part):
    """Draw a number as 2 x 2 blocks of 255 in one row; the middle says which part."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            image[:2, 2 * bit : 2 * bit + 2] = 255
    image[14:16, 14:16] = 255 * (part == "test")
    image[26:, 26:] = 255
    return image


def read_back(images, *, ink):
    """Return the numbers shown, and whether they are of the test part."""
    pixels = images.numpy() if images.shape[-1] == SIDE // 2 else images.numpy()[:, :, ::2, ::2]
    marked = ink(pixels)
    assert marked[:, -1, -1].all()
    return (marked[:, 0, :BITS] * 2 ** np.arange(BITS)).sum(1), marked[:, 7, 7]


def white(pixels):
    return (pixels == 255).all(1)


def coloured(pixels):
    return pixels.max(1) > 0


INK = {
    "biased-mnist": white,
    "multi-color-mnist": white,
    "colored-mnist": coloured,
    "colored-mnist-lnl": coloured,
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Write a stand-in for MNIST, one part compressed and one not; return its folder and labels."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = {}
    for part, prefix, ending in (("train", "train", ".gz"), ("test", "t10k", "")):
        labels[part] = rng.permutation(np.arange(NUM[part]) % 10).astype(np.uint8)
        images = np.stack([show(i, part) for i in range(NUM[part])])
        for kind, array in (("images-idx3", images), ("labels-idx1", labels[part])):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            content = head + array.tobytes()
            path = folder / f"{prefix}-{kind}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
    return root, labels


@pytest.fixture
def digits_labels(stand_in, monkeypatch):
    root, labels = stand_in
    monkeypatch.setenv("SURGEON_DATA", str(root))
    return labels


# Name to rows of train, fit, select and report.
SMALL = {
    "biased-mnist": (600, 80, 40, 300),
    "colored-mnist-lnl": (600, 80, 40, 300),
    "colored-mnist": (1000, 80, 40, 600),
    "multi-color-mnist": (1000, 80, 40, 600),
}
PAPER = {
    "biased-mnist": (1200, 720, 240, 600),
    "colored-mnist-lnl": (1200, 720, 240, 600),
    "colored-mnist": (1200, 360, 120, 120),
    "multi-color-mnist": (1200, 360, 120, 120),
}


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", SMALL)
def test_parts_hold_their_digits_once(name, scale, digits_labels):
    bench = make(name, scale=scale)
    assert "not MNIST itself" in bench.source
    parts = [getattr(bench, part) for part in PARTS]
    assert tuple(map(len, parts)) == (SMALL if scale == "small" else PAPER)[name]
    found = []
    for part in parts:
        numbers, is_test = read_back(part.images, ink=INK[name])
        assert len(set(is_test)) == 1
        source = "test" if is_test[0] else "train"
        assert (digits_labels[source][numbers] == part.target.numpy()).all()
        found.append({(source, number) for number in numbers.tolist()})
        assert len(found[-1]) == len(part)
    train, fit, select, report = found
    assert not fit & select
    assert not report & (train | fit | select)
    recoloured = scale == "paper" and name in ("biased-mnist", "colored-mnist-lnl")
    assert bool(train & fit) == recoloured == ("training digits" in bench.source)


@pytest.mark.parametrize("name", SMALL)
def test_colours_lie_where_they_belong(name, digits_labels):
    bench = make(name, scale="paper", rho=None if name == "multi-color-mnist" else 0.9)
    for part in (bench.train, bench.report):
        x = part.images.permute(0, 2, 3, 1).numpy().astype(float)
        bias = part.biases.numpy()
        if name == "biased-mnist":
            assert (x[:, 5, 5] == REBIAS[bias[:, 0]]).all()
            assert (x[:, -1, -1] == 255).all()
        elif name == "multi-color-mnist":
            assert np.abs(x[:, 5, 13] - 255 * LFF[bias[:, 0]]).max() < 255 * 0.005 * 6
            assert np.abs(x[:, 5, 14] - 255 * (1 - LFF[bias[:, 1]])).max() < 255 * 0.005 * 6
        else:
            palette, deviation = (LFF, 0.005) if name == "colored-mnist" else (LNL, 0.02**0.5)
            away = x[:, -1, -1] - 255 * palette[bias[:, 0]]
            assert np.abs(away).max() < 255 * deviation * 6
            assert (x[:, 5, 5] == 0).all()
    share = (bench.train.biases == bench.train.target[:, None]).float().mean(0)
    expected = [0.99, 0.95] if name == "multi-color-mnist" else [0.9]
    assert share.numpy() == pytest.approx(expected, abs=0.01)
    even = (bench.report.biases == bench.report.target[:, None]).float().mean(0)
    assert even.numpy() == pytest.approx([0.1] * len(expected), abs=0.06)


@pytest.mark.parametrize("name", SMALL)
def test_equal_settings_give_equal_bytes_and_options_move_nothing_else(name, digits_labels):
    bench, again, other = make(name), make(name), make(name, seed=1)
    for part in PARTS:
        assert same(getattr(bench, part), getattr(again, part))
        assert not torch.equal(getattr(bench, part).images, getattr(other, part).images)
    options = [{"rows": 60}, {"rows": 200}, {"label_rho": 0.9}]
    options += [] if name == "multi-color-mnist" else [{"rho": 0.8}]
    for option in options:
        moved = make(name, **option)
        assert same(moved.report, bench.report)
        assert ("rho" in option) != same(moved.train, bench.train)
        labelled, first = (torch.cat([b.fit.images, b.select.images]) for b in (moved, bench))
        if "label_rho" in option:
            share = (moved.fit.biases == moved.fit.target[:, None]).float().mean()
            assert share > 0.7
        else:
            shared = min(len(labelled), len(first))
            assert torch.equal(labelled[:shared], first[:shared])
        if "rows" in option:
            assert len(labelled) == option["rows"]


def test_the_first_published_rows_come_back(digits_labels):
    """The generator of the first measurements, written down once more."""
    rng = np.random.default_rng(5)
    labels = digits_labels["train"]
    order = rng.permutation(len(labels))
    train, rest = order[:600], order[600:720]
    colours = colour_labels(labels[train], 0.99, rng)
    grey = torch.from_numpy(np.stack([show(i, "train") for i in train]))[:, None]
    painted = torch.where(grey != 0, 255.0, torch.tensor(REBIAS[colours])[:, :, None, None])
    pooled = torch.nn.functional.avg_pool2d(painted, 2).round().to(torch.uint8)
    bench = make("biased-mnist", seed=5, rho=0.99)
    assert torch.equal(bench.train.images, pooled)
    assert (bench.train.biases[:, 0].numpy() == colours).all()
    labelled = torch.cat([bench.fit.biases, bench.select.biases])[:, 0].numpy()
    assert (labelled == colour_labels(labels[rest], 0.1, rng)).all()


def test_labelled_rows_have_the_exact_counts_asked_for(digits_labels):
    for label_rho in (0.1, 0.5):
        bench = make("colored-mnist", label_rho=label_rho)
        target, bias = (
            torch.cat([getattr(part, name) for part in (bench.fit, bench.select)]).numpy()
            for name in ("target", "biases")
        )
        dealt = block_labels(target, own_shares(label_rho))
        assert (bias[:, 0] == target).sum() == (dealt[:, 0] == target).sum()


def test_training_is_short_where_there_is_only_colour(digits_labels):
    assert make("biased-mnist", rho=0.997).training.epochs == 20
    assert make("biased-mnist", rho=0.999).training.epochs == 14
    assert make("biased-mnist", rho=0.999, scale="paper").training.epochs == 80


def test_a_wider_jitter_is_wider(digits_labels):
    setting = Setting(benchmark="colored-mnist-lnl", seed=0, scale="paper")
    spread = [
        colored_mnist_lnl(setting, variance=v).train.images[:, :, -1, -1].float().std()
        for v in (0.001, 0.05)
    ]
    assert spread[0] < spread[1]
    with pytest.raises(OptionError, match=r"variance: found 2"):
        colored_mnist_lnl(setting, variance=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("biased-mnist", {"rows": 601}, r"--rows: found 601, expected 20 to 600"),
        ("colored-mnist", {"rows": 1}, r"--rows: found 1, expected 20 to 200"),
        ("multi-color-mnist", {"rho": 0.9}, r"--rho: multi-color-mnist has two fixed"),
        ("digits", {"scale": "paper"}, r"--scale: found 'paper', expected small, which"),
        ("digits", {"net": "resnet18"}, r"--net: found 'resnet18', expected one of test_eff"),
        ("digits", {"rows": 501}, r"--rows: found 501, expected 20 to 500"),
    ],
)
def test_a_setting_that_cannot_be_honoured(name, options, message, digits_labels):
    with pytest.raises(OptionError, match=message):
        make(name, **options)


# The demo's digits.


def test_digits_are_those_of_the_demo():
    bench, drawn = make("digits", seed=3), draw_digits(3)
    images = torch.cat([getattr(bench, part).images for part in PARTS])
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(drawn.images))
    assert [len(getattr(bench, part)) for part in PARTS] == [900, 400, 100, 397]
    assert bench.net == "test_efficientnet"
    leaning = make("digits", seed=3, label_rho=0.9)
    share = [(b.fit.biases[:, 0] == b.fit.target).float().mean() for b in (bench, leaning)]
    assert share[0] < 0.6 < 0.85 < share[1]
    assert same(bench.report, leaning.report)
    assert same(bench.train, leaning.train)
    few = make("digits", seed=3, rows=100)
    assert (len(few.fit), len(few.select)) == (67, 33)
    assert {make("digits", net=net).net for net in RECIPES} == set(RECIPES)


# The real data.


@needs_data
@pytest.mark.slow
def test_real_digits_have_the_published_counts():
    paper = make("biased-mnist", scale="paper")
    assert paper.source.startswith("MNIST, the original files")
    assert torch.bincount(paper.train.target).tolist() == list(MNIST["train"])
    assert int((paper.train.biases != paper.train.target[:, None]).sum()) == 606
    assert (len(paper.fit), len(paper.select), len(paper.report)) == (36_000, 12_000, 10_000)
    small = make("biased-mnist", rho=0.999)
    assert [len(getattr(small, part)) for part in PARTS] == [30_000, 5_000, 1_000, 5_000]
    paper = make("multi-color-mnist", scale="paper")
    target, values = paper.train.target.numpy(), paper.train.biases.numpy()
    assert joint_counts(target, values) == [56_430, 2_972, 573, 25]
    assert (len(paper.fit), len(paper.select), len(paper.report)) == (6_000, 2_000, 2_000)
