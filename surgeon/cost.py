"""What a network costs to keep and to run, beside the same architecture in its full shapes."""

from __future__ import annotations

import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from surgeon.paired import time_pairs
from surgeon.subject import Subject, freeze

BATCHES = (1, 64)
_SECONDS, _MOST_PAIRS, _LEAST_PAIRS = 20.0, 30, 5


@dataclass(frozen=True)
class Size:
    """What a network is made of."""

    parameters: int
    multiply_adds: int
    """Of one image."""
    tensor_bytes: int
    """Parameters and buffers as they are stored."""


@dataclass(frozen=True)
class Speed:
    """Full and edited network at one batch size, run in turn."""

    batch: int
    pairs: int
    full: float
    """Images a second, median."""
    edited: float
    ratio: float
    """Median of the paired ratios, edited over full."""
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    full_peak: int
    """Bytes of tensors alive at once, weights included."""
    edited_peak: int


@dataclass(frozen=True)
class Cost:
    """What an edit saves."""

    full: Size
    edited: Size
    file_bytes: int
    compressed_bytes: int
    """The file after zlib, level 6: zeros cost next to nothing there."""
    sliced: bool
    """Whether shapes are smaller; without that no speed-up is to be expected."""
    device: str
    threads: int
    speeds: tuple[Speed, ...]


def measure_cost(subject: Subject, *, batches: Sequence[int] = BATCHES) -> Cost:
    """Measure a network beside its architecture in full shapes, on the device it is on.

    Args:
        subject: The edited network, as loaded.
        batches: Images of one run, one figure each; 5 to 30 pairs, as fit 20 seconds.
    """
    full = replace(
        subject, net=freeze(subject.architecture.build()).to(subject.device), attributes={}
    )
    content = Path(subject.path).read_bytes()
    return Cost(
        full=_size(full),
        edited=_size(subject),
        file_bytes=len(content),
        compressed_bytes=len(zlib.compress(content)),
        sliced=bool(subject.attributes),
        device=str(subject.device),
        threads=torch.get_num_threads(),
        speeds=tuple(_speed(full, subject, batch) for batch in batches),
    )


@torch.no_grad()
def multiply_adds(net: nn.Module, x: Tensor) -> int:
    """Count the multiply-adds of convolutions, linear layers and attention.

    Args:
        net: The network.
        x: `[n, 3, H, W]`, on its device.
    """
    with FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops() // 2


def _size(subject: Subject) -> Size:
    return Size(
        parameters=sum(p.numel() for p in subject.net.parameters()),
        multiply_adds=multiply_adds(subject.net, _noise(subject, 1)),
        tensor_bytes=_tensor_bytes(subject),
    )


def _tensor_bytes(subject: Subject) -> int:
    return sum(t.numel() * t.element_size() for t in subject.tensors().values())


def _noise(subject: Subject, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = subject.preprocessing.input_size
    return torch.randn(n, *size, generator=generator).to(subject.device)


@torch.no_grad()
def _speed(full: Subject, edited: Subject, batch: int) -> Speed:
    x = _noise(full, batch)
    began = time.perf_counter()
    full.forward(x)
    pairs = int(_SECONDS / (2 * (time.perf_counter() - began)))
    pairs = min(max(pairs, _LEAST_PAIRS), _MOST_PAIRS)
    times = time_pairs(
        lambda: full.forward(x) and None,
        lambda: edited.forward(x) and None,
        pairs=pairs,
        device=full.device,
        warm=1,
    )
    return Speed(
        batch=batch,
        pairs=pairs,
        full=batch / times.first_s,
        edited=batch / times.second_s,
        ratio=times.ratio,
        low=times.low,
        high=times.high,
        full_peak=_peak(full, x),
        edited_peak=_peak(edited, x),
    )


def _peak(subject: Subject, x: Tensor) -> int:
    kept = _tensor_bytes(subject)
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
        before = torch.cuda.memory_allocated(subject.device)
        subject.forward(x)
        return kept + torch.cuda.max_memory_allocated(subject.device) - before
    with _Live() as live:
        subject.forward(x)
    return kept + live.most


class _Live(TorchDispatchMode):
    """Adds up the bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        entered = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and _memory(x) not in self._seen | entered:
                self._follow(x)
        self.most = max(self.most, self.now)
        return out

    def _follow(self, x: Tensor) -> None:
        storage, key = x.untyped_storage(), _memory(x)
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size

        def leave() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, leave)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
