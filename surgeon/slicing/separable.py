"""Which units can be cut out of a network exactly once they are off, before any is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgeon.slicing.marks import Edge
from surgeon.slicing.trace import Flow, trace
from surgeon.slicing.working import working


@dataclass(frozen=True)
class Block:
    """Neighbouring channels that go as a whole or not at all."""

    maker: str
    """Module that makes them."""
    count: int
    """How many there are."""
    width: int
    """Channels of one."""
    consumer: str | None
    """Weight that takes them, for heads of an attention; None for groups of a convolution."""


def separable(net: nn.Module, x: Tensor, off: Mapping[str, Tensor]) -> set[str]:
    """Find the modules whose units that are off can all be cut out.

    Args:
        net: The network with units of many modules switched off.
        x: `[1, 3, H, W]`, random.
        off: Module name to `[U]` bool, which of its outputs are off.
    """
    flow = trace(net, x)
    made, _ = working(net, flow, x)
    return {
        edge.module
        for edge in flow.edges
        if edge.module in off
        and len(off[edge.module]) == len(edge.outs)
        and bool(made.gone[edge.outs][off[edge.module]].all())
    }


def blocks(flow: Flow) -> list[Block]:
    """Find heads of attention and groups of grouped convolutions."""
    found: dict[str, Block] = {}
    makers = [edge for edge in _first_uses(flow) if edge.parameter == f"{edge.module}.weight"]
    for edge in makers:
        if 1 < edge.groups and edge.ins.shape[1] > 1:
            found[edge.module] = Block(
                edge.module, edge.groups, len(edge.outs) // edge.groups, consumer=None
            )
    for edge in makers:
        heads = _runs(edge.ins[0]) if edge.groups == 1 else None
        if heads is None:
            continue
        own, width = heads
        for maker in makers:
            pattern = own.repeat_interleave(width)
            repeats, rest = divmod(len(maker.outs), len(pattern))
            if not rest and repeats and torch.equal(maker.outs, pattern.repeat(repeats)):
                found[maker.module] = Block(maker.module, len(own), width, edge.parameter)
                break
    return list(found.values())


def _first_uses(flow: Flow) -> Iterable[Edge]:
    return {edge.parameter: edge for edge in reversed(flow.edges)}.values()


def _runs(channels: Tensor) -> tuple[Tensor, int] | None:
    """Return the groups that channels come in runs of, and the length of one run."""
    own, counts = channels.unique_consecutive(return_counts=True)
    width = int(counts[0])
    if len(own) < 2 or width < 2 or len(own.unique()) < len(own) or 0 in own.tolist():
        return None
    return (own, width) if bool((counts == width).all()) else None
