"""The most channels that can go, the network's own code included: it has to run, and agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from surgeon.load_sliced import shrink_
from surgeon.slicing.plan import Plan, choose, plan
from surgeon.slicing.trace import Flow

RUN_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)
# Relative to the largest logit: sums in another order, nothing else.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}


def working(
    net: nn.Module, flow: Flow, x: Tensor, *, round_to: int = 1
) -> tuple[Plan, frozenset[int]]:
    """Find the most channels that can go so that the smaller network runs and its logits agree.

    Where it does not, layers are left whole, one kind of layer after the other.

    Args:
        net: The network with units switched off, on the CPU.
        flow: Its channels.
        x: `[n, 3, H, W]`, random, of the network's precision.
        round_to: As in `choose`.

    Returns:
        What goes, and the groups of channels that stay because the network's code needs them.
    """
    with torch.no_grad():
        wanted = net(x)
    scale, tolerance = wanted.abs().max().clamp_min(1e-12), _TOLERANCES[wanted.dtype]
    every, _ = choose(net, flow, round_to=round_to)
    candidates = frozenset(every.nonzero().flatten().tolist())

    def attempt(blocks: Sequence[frozenset[int]]) -> Plan | None:
        gone, _ = choose(net, flow, keep=candidates.difference(*blocks), round_to=round_to)
        made = plan(net, flow, gone)
        smaller = shrink_(copy.deepcopy(net), made.tensors, made.attributes)
        try:
            with torch.no_grad():
                found = smaller(x)
        except RUN_ERRORS:
            return None
        same = found.shape == wanted.shape
        return made if same and float((found - wanted).abs().max() / scale) <= tolerance else None

    def best(blocks: Sequence[frozenset[int]]) -> list[frozenset[int]]:
        """Return blocks that can go together, halving what cannot."""
        if not blocks or attempt(blocks):
            return list(blocks)
        if len(blocks) == 1:
            return []
        half = len(blocks) // 2
        return joined(best(blocks[:half]), best(blocks[half:]))

    def joined(good: list[frozenset[int]], others: list[frozenset[int]]) -> list[frozenset[int]]:
        if not others or attempt([*good, *others]):
            return [*good, *others]
        for block in others:
            good = [*good, block] if attempt([*good, block]) else good
        return good

    good: list[frozenset[int]] = []
    kinds = _kinds(net, flow, candidates)
    every_block = [block for blocks in kinds for block in blocks]
    made = attempt(every_block)
    if made is None:
        for blocks in kinds:
            # Of many layers of one kind the first speaks for the others.
            good = joined(good, best(blocks) if attempt(blocks[:1]) else [])
        made = attempt(good)
    else:
        good = every_block
    assert made is not None  # with no block nothing is taken out
    return made, candidates.difference(*good)


def _kinds(net: nn.Module, flow: Flow, candidates: frozenset[int]) -> list[list[frozenset[int]]]:
    """Put what one layer makes together, and layers of one kind side by side."""
    blocks: dict[frozenset[int], tuple[str, str]] = {}
    for edge in flow.edges:
        own = candidates & frozenset(edge.outs.tolist())
        if own:
            touching = [block for block in blocks if block & own]
            owner, _, name = edge.module.rpartition(".")
            kind = type(net.get_submodule(owner)).__name__, name
            for block in touching:
                kind = blocks.pop(block)
            blocks[own.union(*touching)] = kind
    rest = candidates.difference(*blocks)
    if rest:
        blocks[rest] = "", ""
    kinds: dict[tuple[str, str], list[frozenset[int]]] = {}
    for block, kind in blocks.items():
        kinds.setdefault(kind, []).append(block)
    return list(kinds.values())
