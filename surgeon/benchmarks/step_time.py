"""What a gate step costs beside an Adam step on all weights, in the same normalisation mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from surgeon.benchmarks.nets import SmallConvNet
from surgeon.checkpoint import write_safetensors
from surgeon.data import Data, Rows
from surgeon.groups import Groups, Labels
from surgeon.loading import load
from surgeon.methods import FFW
from surgeon.methods.search import Search
from surgeon.paired import time_pairs
from surgeon.recalibrate import batch_statistics
from surgeon.subject import Subject

_CLASSES = 10
# Network, side of the images, rows of a batch.
_CASES = (("small-conv-net", 14, 100), ("resnet18", 112, 32))


@dataclass(frozen=True)
class StepTime:
    """Median times of one network and mode."""

    net: str
    mode: str
    gate_ms: float
    adam_ms: float
    ratio: float
    """Median of the paired ratios."""
    low: float
    """First quartile of the ratios."""
    high: float
    """Third quartile."""


class _Noise:
    """Images in memory, as `Images` serves them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def batch(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]


def measure_step_times(*, pairs: int = 30, device: str = "cpu") -> list[StepTime]:
    """Time gate steps against Adam steps: the small net at batch 100, resnet18 at 112, batch 32.

    A gate step is everything the search does for one batch: forward, backward, gate update, bias
    head's steps. The Adam step trains every parameter of the same network on the same batch.

    Args:
        pairs: Alternating pairs per figure.
        device: Where to run.
    """
    results = []
    with TemporaryDirectory() as folder:
        for net, size, batch in _CASES:
            subject = _subject(net, size, Path(folder), device)
            data = _data(subject, size, 2 * batch)
            for mode in ("unstructured", "structured"):
                results.append(_time(net, mode, subject, data, batch, pairs))
    return results


def _subject(name: str, size: int, folder: Path, device: str) -> Subject:
    torch.manual_seed(0)
    small = name == "small-conv-net"
    net: nn.Module = SmallConvNet() if small else timm.create_model(name, num_classes=_CLASSES)
    path = folder / f"{name}.safetensors"
    write_safetensors(path, net.state_dict(), {"format": "pt"})
    return load(
        path,
        arch=None if small else f"timm:{name}",
        factory="surgeon.benchmarks.nets:small_conv_net" if small else None,
        preprocessing={"input_size": (3, size, size)},
        device=device,
    )


def _data(subject: Subject, size: int, rows: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(rows, 3, size, size, generator=generator).to(subject.device)
    target = torch.arange(rows) % _CLASSES
    bias = torch.randint(_CLASSES, (rows, 1), generator=generator)
    names = tuple(map(str, range(_CLASSES)))
    groups = Groups(target, bias, names, ("bias",), (names,))
    part = Rows(_Noise(pixels), groups, torch.arange(rows))  # pyright: ignore[reportArgumentType]
    labels = Labels(Path("noise"), (), groups, None, (), ())
    return Data(part, part, part, labels)


def _time(net: str, mode: str, subject: Subject, data: Data, batch: int, pairs: int) -> StepTime:
    config = FFW(mode=mode, batch_size=batch)  # pyright: ignore[reportArgumentType]
    search = Search(subject, data, config.sites(subject), config.settings(), seed=0)
    weights = {n: p.detach().clone().requires_grad_() for n, p in subject.net.named_parameters()}
    optimiser = torch.optim.Adam(weights.values(), lr=1e-4, fused=True)
    rows = torch.arange(batch)
    x, target = data.fit.batch(rows), data.fit.groups.target[rows].to(subject.device)
    biases = [data.fit.groups.biases[rows, 0].to(subject.device)]
    with batch_statistics(subject) as buffers:

        def gate_step() -> None:
            search.step(x, target, biases, buffers)

        def adam_step() -> None:
            loss = cross_entropy(subject.forward(x, {**weights, **buffers})[1], target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        times = time_pairs(gate_step, adam_step, pairs=pairs, device=subject.device)
    return StepTime(
        net=net,
        mode=mode,
        gate_ms=1000 * times.first_s,
        adam_ms=1000 * times.second_s,
        ratio=times.ratio,
        low=times.low,
        high=times.high,
    )
