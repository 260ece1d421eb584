"""The embedded example: real handwritten digits, a small network that leans on their colour."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from surgeon.checkpoint import write_safetensors
from surgeon.export import write_json
from surgeon.whole import fresh_directory

TRAIN, FIT, SELECT = 900, 400, 100
"""Digits of each part; the rest are report rows."""
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
"""Bias names to the colours of the background."""
LABELS = ("below five", "five or more")
"""Class names."""
_ARCHITECTURE = "test_efficientnet"
_SIDE = 32
# Shows that a folder is a demo, and may be replaced by one.
_MARKER = ".surgeon-demo"
_EPOCHS, _BATCH, _LR = 8, 25, 1e-3


def make_demo(out: Path, *, seed: int, force: bool = False) -> None:
    """Make a folder with a biased checkpoint and a labelled set, as an owner would have them.

    scikit-learn's digits on a red or blue background; the class is whether the digit is at least
    five. The network is trained on 900 images of which 97 % have their class's colour; the other
    897 are unbiased: 400 fit, 100 select, 397 report.

    Args:
        out: Folder to make, with `model.safetensors`, `config.json`, `val.csv`, `images/`.
        seed: Order, colours and initial weights.
        force: Replace an earlier demo.

    Raises:
        ArtefactError: The folder exists or cannot be written.
    """
    with fresh_directory(out, force=force, marker=_MARKER) as folder:
        (folder / _MARKER).touch()
        _fill(folder, seed)


@dataclass(frozen=True, eq=False)
class Digits:
    """All digits in the order of the parts: 900 to train on, 400 fit, 100 select, 397 report."""

    images: np.ndarray
    """`[N, 32, 32, 3]` uint8."""
    target: np.ndarray
    """`[N]` int64, place in `LABELS`."""
    bias: np.ndarray
    """`[N]` int64, place in `COLOURS`."""


def draw_digits(seed: int, *, rho: float = 0.97, label_rho: float = 0.5) -> Digits:
    """Order scikit-learn's digits and paint their backgrounds; report rows are unbiased.

    Args:
        seed: Order and colours.
        rho: Share of the training images in their class's colour.
        label_rho: The same of the fit and select images.
    """
    rng = np.random.default_rng(seed)
    digits: Any = load_digits()
    order = rng.permutation(len(digits.target))
    target = (digits.target[order] >= len(digits.target_names) // 2).astype(np.int64)
    share = np.full(len(order), 0.5)
    share[:TRAIN], share[TRAIN : TRAIN + FIT + SELECT] = rho, label_rho
    bias = np.where(rng.random(len(order)) < share, target, 1 - target)
    images = [_paint(digits.images[i], b) for i, b in zip(order, bias, strict=True)]
    return Digits(np.stack(images), target, bias)


def _fill(folder: Path, seed: int) -> None:
    digits = draw_digits(seed)
    images, target, bias = digits.images, digits.target, digits.bias
    net = _train(images[:TRAIN], target[:TRAIN], seed)
    write_safetensors(folder / "model.safetensors", net.state_dict(), {"format": "pt"})
    write_json(folder / "config.json", _config(net))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    parts = ["fit"] * FIT + ["select"] * SELECT
    parts += ["report"] * (len(target) - TRAIN - len(parts))
    colours = list(COLOURS)
    with (folder / "val.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "target", "bias", "split"])
        for i, part in enumerate(parts):
            name, row = f"images/{i:04d}.png", TRAIN + i
            Image.fromarray(images[row]).save(folder / name)
            writer.writerow([name, LABELS[target[row]], colours[bias[row]], part])


def _paint(digit: np.ndarray, colour: int) -> np.ndarray:
    """Lay white ink on a coloured ground: `[8, 8]` grey 0..16 to `[32, 32, 3]` uint8."""
    size = (_SIDE, _SIDE)
    grey = Image.fromarray((digit / 16 * 255).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    ink = np.asarray(grey, dtype=np.float64)[..., None] / 255
    ground = np.array(list(COLOURS.values())[colour], dtype=np.float64)
    return (ink * 255 + (1 - ink) * ground).round().astype(np.uint8)


def _train(images: np.ndarray, target: np.ndarray, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=len(LABELS)).train()
    generator = torch.Generator().manual_seed(seed)
    x: Tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.from_numpy(target)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_LR)
    with _one_thread():
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
                optimiser.zero_grad()
                cross_entropy(net(x[rows]), y[rows]).backward()
                optimiser.step()
    return net.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in one order: how far the network leans must not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _config(net: Any) -> dict[str, Any]:
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": len(LABELS),
        "num_features": net.num_features,
        "label_names": list(LABELS),
        "pretrained_cfg": {
            "input_size": [3, _SIDE, _SIDE],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": len(LABELS),
            "first_conv": net.pretrained_cfg["first_conv"],
            "classifier": net.pretrained_cfg["classifier"],
        },
    }
