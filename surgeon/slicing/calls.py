"""One operation that was carried out, and what every rule may do with its marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from surgeon.slicing.marks import FIXED, NONE, Ledger, Mark, first, fixed, lowest


@dataclass(frozen=True, eq=False)
class Call:
    """One operation that was carried out."""

    ledger: Ledger
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    """Its result, or the first of them."""
    mark: Callable[[Tensor], Mark]

    def argument(self, name: str) -> Any:
        """Return an argument by the name the operation gives it; None where it has none."""
        names = [argument.name for argument in self.func._schema.arguments]  # pyright: ignore
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}.get(name)

    def tensors(self) -> list[Tensor]:
        """Return every tensor among the arguments, those in lists included."""
        found: list[Tensor] = []
        tree_map_only(Tensor, found.append, (self.args, self.kwargs))
        return found


def opaque(call: Call) -> Mark:
    """Keep everything that enters: of this operation nothing is known."""
    marks = [call.mark(x) for x in call.tensors()]
    if marks and all(mark.channel is None for mark in marks):
        return of_parameters(call, mixed=True)
    for mark in marks:
        if mark.channel is not None:
            call.ledger.pair(mark.channel, FIXED)
    return fixed(call.out.shape, known=all(bool(mark.known.all()) for mark in marks))


def of_parameters(call: Call, *, mixed: bool) -> Mark:
    """Mark what is made of parameters alone: elements keep their source where shapes agree."""
    shape, source, ties = call.out.shape, None, []
    for x in call.tensors():
        mark = call.mark(x)
        mixed = mixed or mark.mixed
        if mark.source is None or int(mark.source.max()) < 0:
            continue
        if source is None and mark.source.shape == shape:
            source, ties = mark.source, [*mark.ties, *ties]
        elif not mixed:
            ties.append(mark.source.broadcast_to(shape))
    if source is None:
        mixed, source = True, torch.full(shape, NONE)
    return Mark(torch.ones(shape, dtype=torch.bool), source=source, mixed=mixed, ties=tuple(ties))


def meet(
    ledger: Ledger, marks: Sequence[Mark], shape: Sequence[int], factors: Sequence[Tensor] = ()
) -> Mark:
    """Mark what elementwise operations make of several tensors.

    An element that meets several channels at once, by broadcasting, goes with none of them.

    Args:
        ledger: Takes what goes together.
        marks: Of the operands, an activation among them.
        shape: Of the result.
        factors: The operands, where they are multiplied: a zero makes the product known.
    """
    shape, joined = tuple(shape), None
    channels = [mark.channel for mark in marks if mark.channel is not None]
    for channel in sorted(channels, key=lambda c: -c.numel()):
        whole = channel.broadcast_to(shape)
        if joined is None:
            joined = whole
            continue
        dims = _spread(channel, shape)
        low, high = lowest(joined, dims), first(joined, dims)
        own = channel.reshape([1] * (len(shape) - channel.dim()) + list(channel.shape))
        ledger.pair(own, torch.where(low == high, high, FIXED))
        joined = torch.where(joined < 0, whole, joined)
    assert joined is not None
    for mark in marks:
        if mark.channel is None and mark.source is not None:
            dims = _spread(mark.source, shape)
            low, high = lowest(joined, dims), first(joined, dims)
            own = mark.source.reshape([1] * (len(shape) - mark.source.dim()) + [*mark.source.shape])
            ledger.meet(own.where(low == high, NONE), high)
    known = torch.ones(shape, dtype=torch.bool)
    for mark in marks:
        known = known & mark.known
    for mark, value in zip(marks, factors, strict=False):
        known = known | (mark.known & (value == 0))
    return Mark(known, channel=joined)


def _spread(x: Tensor, shape: Sequence[int]) -> list[int]:
    """Return the axes along which a tensor is broadcast."""
    lead = len(shape) - x.dim()
    return [d for d in range(len(shape)) if d < lead or (x.shape[d - lead] == 1 < shape[d])]


def mix(call: Call, dims: Sequence[int]) -> Mark:
    """Join the channels along some axes; the shape stays."""
    mark = call.mark(call.args[0])
    if mark.channel is None:
        return of_parameters(call, mixed=True)
    one = call.ledger.together(mark.channel, dims)
    known = mark.known.to(torch.uint8).amin(dim=tuple(dims), keepdim=True) > 0
    shape = call.out.shape
    return Mark(known.expand(shape), channel=one.expand(shape))
