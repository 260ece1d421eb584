"""Networks in the making: what they see of the rows, moment by moment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.architecture import differences
from surgeon.checkpoint import read_checkpoint
from surgeon.data import Outputs, Rows, extract
from surgeon.errors import ArtefactError, CheckpointError
from surgeon.recalibrate import batch_statistics
from surgeon.subject import Subject, freeze

_MARKS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LR, _BATCH, _LEAST_BATCH, _BATCHES = 1e-3, 100, 8, 16
_SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")


@dataclass(frozen=True, eq=False)
class Moment:
    """What a network made of all rows at one moment."""

    name: str
    outputs: Outputs


def one_moment(subject: Subject, rows: Rows) -> Iterator[Moment]:
    """Give the network as it is."""
    yield Moment("the checkpoint", extract(subject, rows))


def moments_of_folder(subject: Subject, rows: Rows, folder: Path) -> Iterator[Moment]:
    """Give every checkpoint of a folder, in the order of the numbers in their names.

    Raises:
        ArtefactError: The folder holds no checkpoint.
        CheckpointError: One cannot be read, or is of another network.
    """
    found = [p for p in folder.iterdir() if p.suffix in _SUFFIXES] if folder.is_dir() else []
    if not found:
        raise ArtefactError(
            f"{folder}: holds no checkpoint; give the folder of those saved while training"
        )
    for path in sorted(found, key=_natural):
        read = read_checkpoint(path)
        wrong = differences(subject.net, read.tensors)
        if wrong:
            raise CheckpointError(
                f"{path}: {len(wrong)} keys do not fit {subject.architecture}; remove the file",
                wrong,
            )
        yield Moment(path.name, extract(subject.with_tensors(read.tensors), rows))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort numbers as numbers."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def short_run(subject: Subject, rows: Rows, train: Rows, *, seed: int) -> Iterator[Moment]:
    """Train a new network of the same architecture, and give it after 4, 8, ... 1024 steps.

    Adam at 1e-3 on rows as they come; dropout and the like are off.

    Args:
        subject: For its architecture, preprocessing and device.
        rows: What the moments show.
        train: What is trained on.
        seed: Of the weights and the order of the rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = subject.architecture.build()
    fresh = replace(subject, net=freeze(net).to(subject.device))
    weights = {n: p.detach().clone().requires_grad_() for n, p in fresh.net.named_parameters()}
    with batch_statistics(fresh) as buffers:
        pass
    optimiser = torch.optim.Adam(weights.values(), lr=_LR, fused=True)
    targets = train.groups.target.to(subject.device)
    batches = _endless(train, torch.Generator().manual_seed(seed))
    for step in range(1, _MARKS[-1] + 1):
        picked, x = next(batches)
        with batch_statistics(fresh):
            _, logits = fresh.forward(x, {**weights, **buffers})
        loss = cross_entropy(logits, targets[picked.to(subject.device)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in _MARKS:
            now = {name: value.detach() for name, value in {**weights, **buffers}.items()}
            yield Moment(f"step {step}", extract(fresh, rows, overrides=now))


def _endless(train: Rows, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    size = min(_BATCH, max(_LEAST_BATCH, len(train) // _BATCHES))
    while True:
        yield from train.epoch(size, generator, "none")
