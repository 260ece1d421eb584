"""BatchNorm statistics: batch statistics while fitting, fresh running ones afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from surgeon.subject import Subject

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm modules that keep running statistics, by name."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@contextmanager
def batch_statistics(subject: Subject) -> Iterator[dict[str, Tensor]]:
    """Let BatchNorm use batch statistics; give copies of its buffers for `overrides`.

    The subject's own statistics stay as they are: pass the copies with every forward pass, they
    take the running updates. Modes are restored on leaving.
    """
    norms = batch_norms(subject.net)
    before = {name: module.training for name, module in norms.items()}
    copies = {
        f"{name}.{buffer}": getattr(module, buffer).clone()
        for name, module in norms.items()
        for buffer in _STATISTICS
    }
    try:
        for module in norms.values():
            module.training = True
        yield copies
    finally:
        for name, module in norms.items():
            module.training = before[name]


@torch.no_grad()
def recalibrate(
    subject: Subject, batches: Iterable[Tensor], overrides: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Measure the BatchNorm statistics of an edited network.

    Args:
        subject: The base.
        batches: Images `[m, 3, H, W]` each.
        overrides: The edit's tensors.

    Returns:
        New `running_mean` and `running_var` by buffer name (the mean over batches), on the
        device; empty for a network without BatchNorm, which takes no batch.
    """
    norms = batch_norms(subject.net)
    if not norms:
        return {}
    momenta = {name: module.momentum for name, module in norms.items()}
    try:
        with batch_statistics(subject) as buffers:
            for name, module in norms.items():
                module.momentum = None  # a cumulative mean over batches
                buffers[f"{name}.num_batches_tracked"].zero_()
            for x in batches:
                subject.forward(x, {**overrides, **buffers})
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]
    return {name: value for name, value in buffers.items() if not name.endswith(_STATISTICS[2])}
