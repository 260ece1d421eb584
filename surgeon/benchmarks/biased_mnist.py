"""Biased MNIST at a scale for two CPU cores: 14 x 14 pixels, colour of the background as bias."""

from __future__ import annotations

import csv
import gzip
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from surgeon.benchmarks.nets import SmallConvNet
from surgeon.checkpoint import write_safetensors
from surgeon.data import Data, read_data
from surgeon.errors import LabelError
from surgeon.export import write_json
from surgeon.measure import Measures, measure
from surgeon.methods import FFW
from surgeon.operate import config_of, operate
from surgeon.record import Operation
from surgeon.subject import Subject, load

# ReBias's palette; note 225, not 255, in classes 3 and 4.
_PALETTE = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225),
    (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128),
)  # fmt: skip
_TRAIN, _FIT, _SELECT, _REPORT = 30_000, 5_000, 1_000, 5_000
_CLASSES = 10


def run_biased_mnist(folder: Path, *, rho: float, seed: int) -> list[dict[str, Any]]:
    """Make the data and the vanilla network, and measure every operation.

    What an earlier run left in the folder, with the same settings, is used again: the network and
    each finished stage.

    Args:
        folder: Kept, with the rows as JSON.
        rho: Correlation of the vanilla network's training digits.
        seed: Of everything.

    Returns:
        The rows of `surgeon prune --with-finetune`, then structured masks and the paper's recipe,
        each as exported, as JSON; seconds are those of the fit alone.
    """
    made = folder / f"rho-{rho}-seed-{seed}"
    if not (made / "model.safetensors").is_file():
        make_biased_mnist(made, rho=rho, seed=seed)
    kept = made.with_name(f"{made.name}.json")
    stages = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    subject = load(made, factory="surgeon.benchmarks.nets:small_conv_net")
    data = read_data(subject, made / "val.csv")
    methods = {
        "ffw": FFW(seed=seed),
        "ffw structured": FFW(mode="structured", seed=seed),
        "ffw paper": FFW(recipe="paper", seed=seed),
    }
    for name, method in methods.items():
        config = config_of(method)
        if stages.get(name, {}).get("config") != config:
            rows = _measure(subject, data, name, method, seed)
            stages[name] = {"config": config, "rows": [row.to_json() for row in rows]}
            write_json(kept, stages)
    return [row for name in methods for row in stages[name]["rows"]]


def _measure(
    subject: Subject, data: Data, name: str, method: FFW, seed: int
) -> Sequence[Operation]:
    """Measure a method: the main one with all controls, another as its own row."""
    measures = Measures(with_finetune=True, seed=seed)
    if name == method.name:
        return operate(subject, data, method, measures=measures).report.operations
    start = time.perf_counter()
    edit = method.fit(subject, data)
    seconds = time.perf_counter() - start
    rows = measure(subject, data, {name: edit}, measures)
    return [replace(row, seconds=seconds) for row in rows]


def find_mnist() -> Path:
    """Return the folder of the four original MNIST files.

    Raises:
        LabelError: `SURGEON_DATA` is not set or holds no `MNIST/raw`.
    """
    root = Path(os.environ.get("SURGEON_DATA", ""), "data", "MNIST", "raw")
    if not (root / "train-images-idx3-ubyte.gz").is_file():
        raise LabelError(
            "SURGEON_DATA: expected a folder with data/MNIST/raw/train-images-idx3-ubyte.gz and "
            "the other three original files; set the variable"
        )
    return root


def read_mnist(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read `train` or `t10k`: images `[N, 28, 28]` and labels `[N]`, both uint8."""
    with gzip.open(root / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(root / f"{part}-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read(), np.uint8, offset=8)


def colour_labels(target: np.ndarray, rho: float, rng: np.random.Generator) -> np.ndarray:
    """Assign colours: in each class floor(n rho) its own, the rest dealt to the other nine.

    Args:
        target: `[N]` classes 0..9.
        rho: Share of a class that keeps its own colour.
        rng: Orders the rows of a class, and the other colours.

    Returns:
        `[N]` colours 0..9.

    Source:
        ReBias's generator, with a local seed instead of numpy's global one.
    """
    colours = np.empty_like(target)
    for own in range(_CLASSES):
        rows = rng.permutation(np.flatnonzero(target == own))
        kept = int(len(rows) * rho)
        colours[rows[:kept]] = own
        rest = rows[kept:]
        size = -(-len(rest) // (_CLASSES - 1))
        others = rng.permutation([c for c in range(_CLASSES) if c != own])
        for i, other in enumerate(others):
            colours[rest[i * size : (i + 1) * size]] = other
    return colours


def paint(images: np.ndarray, colours: np.ndarray) -> Tensor:
    """Paint backgrounds, digits white, and pool to 14 x 14: `[N, 3, 14, 14]` uint8."""
    palette = torch.tensor(_PALETTE, dtype=torch.float32)[torch.from_numpy(colours).long()]
    ink = torch.from_numpy(images != 0)[:, None]
    painted = torch.where(ink, 255.0, palette[:, :, None, None])
    return avg_pool2d(painted, 2).round().to(torch.uint8)


def make_biased_mnist(folder: Path, *, rho: float, seed: int, epochs: int = 20) -> None:
    """Write what an owner would have: `model.safetensors`, `val.csv` and `images/`.

    MNIST-train is permuted by the seed; the first 30,000 digits train the vanilla network at
    correlation `rho`, the next 6,000 are unbiased (5,000 fit, 1,000 select); the report rows are
    the first 5,000 of MNIST-test, unbiased.

    Args:
        folder: Filled; made if need be.
        rho: Share of training digits on their own colour.
        seed: Orders, colours and initial weights.
        epochs: Of vanilla training.
    """
    rng = np.random.default_rng(seed)
    root = find_mnist()
    images, labels = read_mnist(root, "train")
    order = rng.permutation(len(labels))
    train, rest = order[:_TRAIN], order[_TRAIN : _TRAIN + _FIT + _SELECT]
    colours = colour_labels(labels[train], rho, rng)
    state = train_vanilla(paint(images[train], colours), labels[train], seed=seed, epochs=epochs)
    test_images, test_labels = read_mnist(root, "t10k")
    pool = np.concatenate([images[rest], test_images[:_REPORT]])
    target = np.concatenate([labels[rest], test_labels[:_REPORT]])
    colours = np.concatenate(
        [colour_labels(labels[rest], 0.1, rng), colour_labels(test_labels[:_REPORT], 0.1, rng)]
    )
    parts = ["fit"] * _FIT + ["select"] * _SELECT + ["report"] * _REPORT
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "val.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "target", "bias", "split"])
        for i, pixels in enumerate(paint(pool, colours)):
            name = f"images/{i:05d}.png"
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
            writer.writerow([name, target[i], colours[i], parts[i]])
    write_safetensors(folder / "model.safetensors", state, {"format": "pt"})


def train_vanilla(
    images: Tensor, labels: np.ndarray, *, seed: int, epochs: int, batch_size: int = 128
) -> dict[str, Tensor]:
    """Train the network the ordinary way: SGD 0.1 / 0.9 / 1e-4, one cycle of both.

    Args:
        images: `[N, 3, H, W]` uint8.
        labels: `[N]` classes.
        seed: Initial weights and order.
        epochs: Passes.
        batch_size: Rows per step.

    Returns:
        Its state dict.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SmallConvNet().train()
    generator = torch.Generator().manual_seed(seed)
    x, y = images.float() / 127.5 - 1, torch.from_numpy(labels).long()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // batch_size * batch_size].split(batch_size):
            optimiser.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return net.state_dict()
