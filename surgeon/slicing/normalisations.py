"""Normalisations: what they join, and where a scale of zero makes the result known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from surgeon.slicing.calls import Call, meet, mix, of_parameters, opaque
from surgeon.slicing.marks import FIXED, Mark


def _affine(call: Call, mark: Mark, tensors: Sequence[Tensor | None], axes: Sequence[int]) -> Mark:
    """Scale and shift along some axes; a scale of zero makes the result known."""
    shape = [1] * call.out.dim()
    for axis in axes:
        shape[axis] = call.out.shape[axis]
    own = [
        replace(found, known=found.known.reshape(shape), **_reshaped(found, shape))
        for found in (call.mark(x) for x in tensors if x is not None)
    ]
    result = meet(call.ledger, [mark, *own], call.out.shape)
    scale = tensors[0]
    if scale is None:
        return result
    nothing = (scale.reshape(shape) == 0) & call.mark(scale).known.reshape(shape)
    return replace(result, known=result.known | nothing)


def _reshaped(mark: Mark, shape: Sequence[int]) -> dict[str, Tensor]:
    origin = {"channel": mark.channel, "source": mark.source}
    return {name: x.reshape(list(shape)) for name, x in origin.items() if x is not None}


def batch_norm(call: Call) -> Mark:
    """Follow a normalisation by running statistics, or one that standardises a weight."""
    x = call.args[0]
    own = [call.argument(n) for n in ("weight", "bias", "running_mean", "running_var")]
    mark = call.mark(x)
    if mark.channel is None:  # a weight is standardised
        made, shape = of_parameters(call, mixed=True), [1, -1, *[1] * (x.dim() - 2)]
        scales = [call.mark(scale).source for scale in own if scale is not None]
        ties = [s.reshape(shape).expand(x.shape) for s in scales if s is not None]
        return replace(made, ties=(*made.ties, *ties))
    alone = own[2] is not None and not call.argument("training")
    return _affine(call, mark, own, [1]) if alone else opaque(call)


def layer_norm(call: Call) -> Mark:
    """Follow a normalisation over the last axes."""
    x, sizes, *own = call.args[:4]
    dims = list(range(x.dim() - len(sizes), x.dim()))
    return _affine(call, mix(call, dims), own, dims)


def group_norm(call: Call) -> Mark:
    """Follow a normalisation over groups of channels, all of which stay."""
    x, *own = call.args[:3]
    groups = call.argument("group")
    mark = call.mark(x)
    if mark.channel is None:
        return of_parameters(call, mixed=True)
    split = mark.channel.reshape(x.shape[0], groups, -1)
    call.ledger.pair(split, FIXED)  # the number of groups is the network's own
    known = mark.known.reshape(x.shape[0], groups, -1).all(dim=2, keepdim=True)
    whole = replace(mark, known=known.expand(split.shape).reshape(x.shape))
    return _affine(call, whole, own, [1])
