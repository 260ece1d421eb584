"""What it saves to refit a bias head on cached features instead of running the network again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from surgeon.bias_head import BiasHead
from surgeon.data import Rows, extract, read_data
from surgeon.demo import make_demo
from surgeon.loading import load
from surgeon.subject import Subject

_BATCH = 100


@dataclass(frozen=True)
class RefitTime:
    """Times of one refit of the published recipe's bias head, on the demo's fit rows."""

    rows: int
    epochs: int
    """Until the loss stopped falling."""
    cached_s: float
    """One pass of the network and all epochs on its features."""
    network_s: float
    """The same epochs with a pass of the network in each, as the authors' code has it: its first
    epochs are timed and the rest counted at their mean."""
    ratio: float


def measure_refit_time(*, timed_epochs: int = 10, device: str = "cpu") -> RefitTime:
    """Time a refit both ways on the demo's network.

    Args:
        timed_epochs: Epochs through the network that are run.
        device: Where to run.
    """
    with TemporaryDirectory() as parent:
        folder = Path(parent, "demo")
        make_demo(folder, seed=0)
        subject = load(folder, device=device)
        rows = read_data(subject, folder / "val.csv").fit
    bias = rows.groups.biases[:, 0].to(subject.device)
    extract(subject, rows)  # warm
    began = time.perf_counter()
    features = extract(subject, rows).features.to(subject.device)
    head = BiasHead(features, rows.groups.num_values(0))
    epochs = head.fit(features, bias, generator=torch.Generator().manual_seed(0))
    cached = time.perf_counter() - began
    again = BiasHead(features, rows.groups.num_values(0))
    began = time.perf_counter()
    for _ in range(timed_epochs):
        _epoch_through(subject, rows, bias, again)
    network = (time.perf_counter() - began) * epochs / timed_epochs
    return RefitTime(len(rows), epochs, cached, network, network / cached)


def _epoch_through(subject: Subject, rows: Rows, bias: Tensor, head: BiasHead) -> None:
    for picked, x in rows.batches(_BATCH):
        features, _ = subject.forward(x)
        head.step(features, bias[picked])
