"""Decide which channels can go without changing any logit, and what takes their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.slicing.marks import Edge
from surgeon.slicing.trace import Flow

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a smaller network has.

    Attributes:
        gone: `[num_groups]` bool, groups of channels that are taken out.
        tensors: Parameters and buffers whose shape or value changes, by name; a name the network
            does not have is a new additive term.
        attributes: Module name to attributes that its code reads, for example `groups`.
    """

    gone: Tensor
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Mapping[str, Any]]


def choose(
    net: nn.Module, flow: Flow, *, keep: Iterable[int] = (), round_to: int = 1
) -> tuple[Tensor, set[int]]:
    """Find the most channels that can go at once.

    A group of channels goes if whatever takes its elements has a weight of zero for them, or goes
    too, or if they are zero or another constant that an additive term can take up. Where a
    layer's shape forbids it (a layer without channels, groups of unequal size), some stay.

    Args:
        net: The folded network.
        flow: Its channels.
        keep: Groups that must stay.
        round_to: What the number of outputs of every layer is a multiple of, as far as it goes.

    Returns:
        `[num_groups]` bool, what goes; and the groups that stay for the shapes' sake.
    """
    asked, kept = set(keep), set(keep)
    while True:
        gone = _removable(net, flow, kept)
        more = _forbidden(flow, gone, round_to)
        if not more:
            return gone, kept - asked
        kept |= more


def _removable(net: nn.Module, flow: Flow, kept: set[int]) -> Tensor:
    gone = torch.ones(flow.num_groups, dtype=torch.bool)
    gone[[0, *kept]] = False
    uses = Counter(edge.parameter for edge in flow.edges)
    leaks = [
        _leaks(edge, _takes_bias(net, edge) and uses[edge.parameter] == 1) for edge in flow.edges
    ]
    while True:
        before = int(gone.sum())
        for edge, leak in zip(flow.edges, leaks, strict=True):
            stays = ~gone[edge.outs].reshape(edge.groups, -1, 1)
            gone[edge.ins[(leak & stays).any(dim=1)]] = False
        if int(gone.sum()) == before:
            return gone


def _leaks(edge: Edge, takes_bias: bool) -> Tensor:
    """Return `[groups, O / groups, I]` bool: which output would change if the input went."""
    used = (edge.weight != 0).flatten(2).any(dim=2) if edge.weight.dim() > 2 else edge.weight != 0
    used = used.reshape(edge.groups, -1, used.shape[1])
    taken_up = ~edge.constant.isnan() if takes_bias else edge.constant == 0
    return used & ~taken_up[:, None]


def _takes_bias(net: nn.Module, edge: Edge) -> bool:
    """Say whether the layer adds a vector of its own, or could."""
    module = net.get_submodule(edge.module)
    plain = isinstance(module, (nn.Linear, *_CONVOLUTIONS))
    return plain and edge.intact and edge.parameter.endswith("weight") and edge.out_axis == 0


def _forbidden(flow: Flow, gone: Tensor, round_to: int) -> set[int]:
    """Return groups that must stay for the shapes' sake."""
    found: set[int] = set()
    for edge in flow.edges:
        for channels in (edge.outs, edge.ins.flatten()):
            if bool(gone[channels].all()):
                found.add(int(channels[0]))
        if edge.groups > 1 and not found:
            found |= _unequal(edge, gone)
        if round_to > 1 and not found:
            found |= _uneven(edge, gone, round_to)
    return found


def _unequal(edge: Edge, gone: Tensor) -> set[int]:
    """Return what must stay so that all groups of a convolution that stay are of one size."""
    outs, ins = edge.outs.reshape(edge.groups, -1), edge.ins
    stays = ~(gone[outs].all(dim=1) & gone[ins].all(dim=1))
    found: set[int] = set()
    for channels in (outs[stays], ins[stays]):
        out = gone[channels]
        most = int(out.sum(dim=1).min())
        surplus = out & (out.cumsum(dim=1) > most)
        found |= set(channels[surplus].tolist())
    return found


def _uneven(edge: Edge, gone: Tensor, round_to: int) -> set[int]:
    out = gone[edge.outs]
    left = int((~out).sum())
    missing = min(-left % round_to, int(out.sum()))
    return set(edge.outs[out][:missing].tolist())


@torch.no_grad()
def plan(net: nn.Module, flow: Flow, gone: Tensor) -> Plan:
    """Work out the smaller network's tensors and attributes.

    Args:
        net: The network that was traced, in any precision.
        flow: Its channels.
        gone: `[num_groups]` bool, from `choose`.
    """
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    uses: dict[str, list[Edge]] = {}
    for edge in flow.edges:
        uses.setdefault(edge.parameter, []).append(edge)
    new: dict[str, Tensor] = {}
    groups: dict[str, int] = {}
    for name, edges in uses.items():
        if edges[0].groups > 1:
            new[name], groups[edges[0].module] = _cut_groups(edges[0], tensors[name], gone)
        else:
            new[name] = _cut(edges, tensors[name], gone)
    for name, acts in flow.acts.items():
        if name not in new:
            new[name] = _cut_elements(tensors[name], gone[acts])
    for edge in flow.edges:
        moved = _constants(edge, gone)
        if moved is not None:
            name, kept = f"{edge.module}.bias", moved[~gone[edge.outs]]
            old = new.get(name, torch.zeros_like(kept))
            new[name] = (old.double() + kept).to(tensors[edge.parameter])
    changed = {
        name: value
        for name, value in new.items()
        if name not in tensors or not torch.equal(value, tensors[name])
    }
    return Plan(gone, changed, _attributes(net, changed, groups))


def _cut(uses: Sequence[Edge], value: Tensor, gone: Tensor) -> Tensor:
    keep = [torch.ones(size, dtype=torch.bool) for size in value.shape]
    for edge in uses:
        keep[edge.out_axis][edge.out_index[gone[edge.outs]]] = False
        keep[edge.in_axis][edge.in_index[gone[edge.ins[0]]]] = False
    for axis, kept in enumerate(keep):
        if not bool(kept.all()):
            value = value.index_select(axis, kept.nonzero().flatten())
    return value


def _cut_groups(edge: Edge, value: Tensor, gone: Tensor) -> tuple[Tensor, int]:
    outs = ~gone[edge.outs].reshape(edge.groups, -1)
    ins = ~gone[edge.ins]
    stays = (outs.any(dim=1) | ins.any(dim=1)).nonzero().flatten().tolist()
    parts = value.unflatten(0, (edge.groups, -1))
    return torch.cat([parts[g][outs[g]][:, ins[g]] for g in stays]), len(stays)


def _cut_elements(value: Tensor, drop: Tensor) -> Tensor:
    drop = drop.reshape(value.shape)
    for axis in range(value.dim()):
        others = [d for d in range(value.dim()) if d != axis]
        out = drop.to(torch.uint8).amin(dim=others) > 0 if others else drop
        if bool(out.any()) and not bool(out.all()):
            kept = (~out).nonzero().flatten()
            value, drop = value.index_select(axis, kept), drop.index_select(axis, kept)
    return value


def _constants(edge: Edge, gone: Tensor) -> Tensor | None:
    """Return `[O]`, what inputs that go have added to every output; None if nothing."""
    moved = edge.constant.nan_to_num().masked_fill(~gone[edge.ins], 0)
    if not bool(moved.any()):
        return None
    weight = edge.weight.flatten(2).sum(dim=2) if edge.weight.dim() > 2 else edge.weight
    grouped = weight.reshape(edge.groups, -1, weight.shape[1])
    return (grouped.double() @ moved[:, :, None]).flatten()


def _attributes(
    net: nn.Module, new: Mapping[str, Tensor], groups: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Work out what the modules' code reads beside their tensors."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in net.named_modules():
        lead = f"{name}."
        own = {key.removeprefix(lead): t for key, t in new.items() if key.startswith(lead)}
        weight = own.get("weight")
        if isinstance(module, _CONVOLUTIONS) and weight is not None:
            count = groups.get(name, module.groups)
            found[name] = {
                "out_channels": weight.shape[0],
                "in_channels": weight.shape[1] * count,
                "groups": count,
            }
        elif isinstance(module, nn.Linear) and weight is not None:
            found[name] = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        elif isinstance(getattr(module, "num_features", None), int) and "running_mean" in own:
            found[name] = {"num_features": own["running_mean"].shape[0]}
        heads = _heads(module, own)
        if heads:
            found[name] = heads
    return found


_HEADS = ("num_heads", "num_attention_heads")
_WIDTHS = ("attn_dim", "all_head_size", "inner_dim")


def _heads(module: nn.Module, own: Mapping[str, Tensor]) -> dict[str, int]:
    """Work out how many heads an attention has left, by the shares of its layers' outputs."""
    heads = [name for name in _HEADS if isinstance(getattr(module, name, None), int)]
    if not heads:
        return {}
    shares = {
        own[f"{name}.weight"].shape[0] / child.weight.shape[0]
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and f"{name}.weight" in own
    } - {1.0}
    if len(shares) != 1:
        return {}
    (share,) = shares
    names = [*heads, *(w for w in _WIDTHS if isinstance(getattr(module, w, None), int))]
    return {name: round(getattr(module, name) * share) for name in names}
