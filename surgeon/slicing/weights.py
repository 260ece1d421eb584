"""Matrix products and convolutions: where a weight takes one channel into another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from surgeon.slicing.marks import FIXED, NONE, Edge, Ledger, Mark

Marked = Callable[[Tensor], Mark]


def multiply(ledger: Ledger, args: tuple[Any, ...], mark: Marked, out: Tensor) -> Mark | None:
    """Follow a product of matrices, with or without a summand; None where it is not understood."""
    *summand, left, right = (x for x in args if isinstance(x, Tensor))
    marks = mark(left), mark(right)
    made = [found.channel is None for found in marks]
    if all(made):
        return None
    if any(made) and left.dim() == 2:
        if made[0]:  # weight @ x
            result = _linear(ledger, right.mT, marks[1], left.mT, marks[0], transposed=True)
        else:
            result = _linear(ledger, left, marks[0], right, marks[1], transposed=False)
        if result is not None:
            _take_bias(ledger, [mark(x) for x in summand], result, transposed=made[0])
        return result
    return _joined(ledger, [*marks, *(mark(x) for x in summand)], out)


def _joined(ledger: Ledger, marks: list[Mark], out: Tensor) -> Mark:
    """Let everything that enters one product of a batch go together: an attention head."""
    ones, known = [], torch.ones(out.shape, dtype=torch.bool)
    for found in marks:
        channel = ledger.as_activation(found).channel
        assert channel is not None
        dims = list(range(channel.dim() - 2, channel.dim()))
        ones.append(ledger.together(channel, dims).broadcast_to(*out.shape[:-2], 1, 1))
        known &= bool(found.known.all())
    joined = ones[0]
    for other in ones[1:]:
        ledger.pair(joined, other)
        joined = torch.where(joined < 0, other, joined)
    return Mark(known, channel=joined.expand(out.shape))


def _linear(
    ledger: Ledger, x: Tensor, entered: Mark, weight: Tensor, own: Mark, *, transposed: bool
) -> Mark | None:
    """Follow x `[R, K]` @ weight `[K, M]`."""
    channel, known = entered.channel, entered.known
    assert channel is not None
    assert own.source is not None
    source, ties = own.source, own.ties
    if transposed:
        channel, known, source = channel.mT, known.mT, source.mT
        ties = tuple(tie.mT for tie in ties)
    place = _placed(ledger, source.T)
    if place is None:
        return None
    ins = ledger.together(channel, [0])
    outs = ledger.fresh(weight.shape[1])
    if own.mixed:
        ledger.pair(ins, FIXED)
    for tie in ties:
        ledger.meet(tie[0], outs)
    unknown = (~known).to(weight.dtype) @ (weight != 0).to(weight.dtype) > 0
    always, value = known.all(dim=0), x[0]
    same = always & (x == value).all(dim=0)
    _add_edge(ledger, place, outs, ins, 1, weight.T, same, value, own, foldable=not transposed)
    result = outs.expand(unknown.shape)
    return Mark(~unknown.T, channel=result.T) if transposed else Mark(~unknown, channel=result)


def _take_bias(ledger: Ledger, summands: list[Mark], result: Mark, *, transposed: bool) -> None:
    assert result.channel is not None
    for found in summands:
        if found.channel is None and found.source is not None:
            row = result.channel.T if transposed else result.channel
            source = found.source.reshape(-1)
            if len(source) == row.shape[1]:
                ledger.meet(source, row[0])
        elif found.channel is not None:
            ledger.pair(found.channel, result.channel)


def convolve(ledger: Ledger, args: tuple[Any, ...], mark: Marked, out: Tensor) -> Mark | None:
    """Follow a convolution; None where it is not understood (transposed ones)."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    entered, own = mark(x), mark(weight)
    if transposed or entered.channel is None or own.source is None:
        return None
    kernel = math.prod(weight.shape[2:])
    source = own.source.reshape(*weight.shape[:2], kernel)
    place = _placed(ledger, source[:, :, 0])
    if place is None:
        return None
    dims = [0, *range(2, x.dim())]
    ins = ledger.together(entered.channel, dims).reshape(groups, -1)
    outs = ledger.fresh(weight.shape[0])
    if own.mixed:
        ledger.pair(ins, FIXED)
    for tie in own.ties:
        ledger.meet(tie.reshape(len(outs), -1)[:, 0], outs)
    added = None if bias is None else mark(bias).source
    if added is not None:
        ledger.meet(added, outs)
    convolution = {1: conv1d, 2: conv2d, 3: conv3d}[x.dim() - 2]
    entering, used = (~entered.known).float(), (weight != 0).float()
    unknown = convolution(entering, used, None, stride, padding, dilation, groups) > 0
    value = x[(0, slice(None), *[0] * (x.dim() - 2))]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    every = (entered.known & (x == value.reshape(shape))).all(dim=0).flatten(1).all(dim=1)
    foldable = not any(padding)
    _add_edge(ledger, place, outs, ins, groups, weight, every, value, own, foldable=foldable)
    return Mark(~unknown, channel=outs.reshape(shape).expand(out.shape))


def _add_edge(
    ledger: Ledger,
    place: tuple[str, int, int, Tensor, Tensor],
    outs: Tensor,
    ins: Tensor,
    groups: int,
    weight: Tensor,
    same: Tensor,
    value: Tensor,
    own: Mark,
    *,
    foldable: bool,
) -> None:
    name, out_axis, in_axis, out_index, in_index = place
    zero = same & (value == 0)
    there = same & (torch.full_like(same, foldable) | zero)
    ledger.edges.append(
        Edge(
            parameter=name,
            module=name.rpartition(".")[0],
            out_axis=out_axis,
            in_axis=in_axis,
            out_index=out_index,
            in_index=in_index,
            outs=outs,
            ins=ins.reshape(groups, -1),
            groups=groups,
            weight=weight,
            constant=value.double().masked_fill(~there, math.nan).reshape(groups, -1),
            intact=not own.mixed and not own.ties,
        )
    )


def _placed(ledger: Ledger, source: Tensor) -> tuple[str, int, int, Tensor, Tensor] | None:
    """Find the axes of one parameter along which outputs and inputs of a weight run.

    Args:
        ledger: Knows the parameters.
        source: `[O, I]`.

    Returns:
        Name, axis of outputs, axis of inputs, `[O]` and `[I]` positions along them.
    """
    found = ledger.element(source)
    if found is None or bool((source == NONE).any()):
        return None
    name, places = found
    shape = ledger.tensors[name].shape
    down = torch.stack(torch.unravel_index(places[:, 0], shape))
    across = torch.stack(torch.unravel_index(places[0], shape))
    out_axis = _varying(down, 0)
    in_axis = _varying(across, 1 if out_axis == 0 else 0)
    if out_axis == in_axis:
        return None
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    rebuilt = down[out_axis][:, None] * strides[out_axis] + across[in_axis] * strides[in_axis]
    if not torch.equal(rebuilt, places):
        return None
    return name, out_axis, in_axis, down[out_axis], across[in_axis]


def _varying(coordinates: Tensor, default: int) -> int:
    varies = (coordinates != coordinates[:, :1]).any(dim=1).nonzero().flatten().tolist()
    return varies[0] if len(varies) == 1 else default
