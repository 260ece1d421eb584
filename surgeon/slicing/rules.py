"""What each operation does to channels: moves them, joins them, or makes new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from surgeon.slicing.marks import FIXED, NONE, Ledger, Mark, first, fixed, lowest
from surgeon.slicing.weights import convolve, multiply


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


Rule = Callable[[Call], Mark]


def opaque(call: Call) -> Mark:
    """Keep everything that enters: of this operation nothing is known."""
    marks = [call.mark(x) for x in call.tensors()]
    if marks and all(mark.channel is None for mark in marks):
        return _of_parameters(call, mixed=True)
    for mark in marks:
        if mark.channel is not None:
            call.ledger.pair(mark.channel, FIXED)
    return fixed(call.out.shape, known=all(bool(mark.known.all()) for mark in marks))


def _of_parameters(call: Call, *, mixed: bool) -> Mark:
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


def _elementwise(call: Call) -> Mark:
    """Join the channels of elements that meet."""
    tensors = call.tensors()
    marks = [call.mark(x) for x in tensors]
    if all(mark.channel is None for mark in marks):
        return _of_parameters(call, mixed=False)
    factors = tensors if call.func.overloadpacket.__name__.startswith("mul") else []  # pyright: ignore
    return meet(call.ledger, marks, call.out.shape, factors)


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


def _moved(call: Call, move: Callable[[Tensor, int], Tensor | Sequence[Tensor]]) -> Any:
    """Move channels, sources and what is known as the tensor was moved."""
    mark = call.mark(call.tensors()[0])
    known = move(mark.known.to(torch.int64), 1)
    name = "source" if mark.channel is None else "channel"
    origin = mark.source if mark.channel is None else mark.channel
    assert origin is not None
    moved = move(origin, NONE)
    ties = [move(tie, NONE) for tie in mark.ties]
    if isinstance(moved, Tensor):
        assert isinstance(known, Tensor)
        own = tuple(tie for tie in ties if isinstance(tie, Tensor))
        return replace(mark, known=known > 0, **{name: moved}, ties=own)
    return [
        replace(mark, known=k > 0, **{name: m}, ties=tuple(tie[i] for tie in ties))
        for i, (k, m) in enumerate(zip(known, moved, strict=True))
    ]


def _move(call: Call) -> Any:
    rest, kwargs = call.args[1:], call.kwargs
    return _moved(call, lambda x, _: call.func(x, *rest, **kwargs))


def _reshape(call: Call) -> Any:
    return _moved(call, lambda x, _: x.reshape(call.out.shape))


def _expand(call: Call) -> Any:
    return _moved(call, lambda x, _: x.broadcast_to(call.out.shape))


def _same(call: Call) -> Any:
    return _moved(call, lambda x, _: x)


def _pad(call: Call) -> Any:
    return _moved(call, lambda x, fill: call.func(x, call.args[1], fill))


def _joined(call: Call) -> Mark:
    """Move several tensors into one."""
    parts = call.args[0]
    marks = [call.mark(x) for x in parts]
    rest, kwargs = call.args[1:], call.kwargs
    known = call.func([mark.known for mark in marks], *rest, **kwargs)
    if all(mark.channel is None for mark in marks):
        sources = [mark.source for mark in marks]
        mixed = any(mark.mixed for mark in marks)
        return Mark(known, source=call.func(sources, *rest, **kwargs), mixed=mixed)
    channels = [call.ledger.as_activation(mark).channel for mark in marks]
    return Mark(known, channel=call.func(channels, *rest, **kwargs))


def _reduced(call: Call) -> Mark:
    x = call.args[0]
    mark = call.mark(x)
    if mark.channel is None:
        return _of_parameters(call, mixed=True)
    dims = call.argument("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
    one = call.ledger.together(mark.channel, dims)
    known = mark.known.to(torch.uint8).amin(dim=tuple(dims), keepdim=True) > 0
    return Mark(known.reshape(call.out.shape), channel=one.reshape(call.out.shape))


def _mixed(call: Call) -> Mark:
    """Join the channels along one axis, whose elements depend on each other."""
    return mix(call, [int(call.args[1])])


def mix(call: Call, dims: Sequence[int]) -> Mark:
    """Join the channels along some axes; the shape stays."""
    mark = call.mark(call.args[0])
    if mark.channel is None:
        return _of_parameters(call, mixed=True)
    one = call.ledger.together(mark.channel, dims)
    known = mark.known.to(torch.uint8).amin(dim=tuple(dims), keepdim=True) > 0
    shape = call.out.shape
    return Mark(known.expand(shape), channel=one.expand(shape))


def _spatial(call: Call) -> Mark:
    """Let every place of a channel answer for the others: pooling, resizing."""
    mark = call.ledger.as_activation(call.mark(call.args[0]))
    assert mark.channel is not None
    dims = list(range(call.args[0].dim() - 2, call.args[0].dim()))
    one = call.ledger.together(mark.channel, dims)
    known = mark.known.to(torch.uint8).amin(dim=tuple(dims), keepdim=True) > 0
    return Mark(known.expand(call.out.shape), channel=one.expand(call.out.shape))


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


def _batch_norm(call: Call) -> Mark:
    x = call.args[0]
    own = [call.argument(n) for n in ("weight", "bias", "running_mean", "running_var")]
    mark = call.mark(x)
    if mark.channel is None:  # a weight is standardised
        made, shape = _of_parameters(call, mixed=True), [1, -1, *[1] * (x.dim() - 2)]
        scales = [call.mark(scale).source for scale in own if scale is not None]
        ties = [s.reshape(shape).expand(x.shape) for s in scales if s is not None]
        return replace(made, ties=(*made.ties, *ties))
    alone = own[2] is not None and not call.argument("training")
    return _affine(call, mark, own, [1]) if alone else opaque(call)


def _layer_norm(call: Call) -> Mark:
    x, sizes, *own = call.args[:4]
    dims = list(range(x.dim() - len(sizes), x.dim()))
    return _affine(call, mix(call, dims), own, dims)


def _group_norm(call: Call) -> Mark:
    x, *own = call.args[:3]
    groups = call.argument("group")
    mark = call.mark(x)
    if mark.channel is None:
        return _of_parameters(call, mixed=True)
    split = mark.channel.reshape(x.shape[0], groups, -1)
    call.ledger.pair(split, FIXED)  # the number of groups is the network's own
    known = mark.known.reshape(x.shape[0], groups, -1).all(dim=2, keepdim=True)
    whole = replace(mark, known=known.expand(split.shape).reshape(x.shape))
    return _affine(call, whole, own, [1])


def _convolution(call: Call) -> Mark:
    return convolve(call.ledger, call.args, call.mark, call.out) or opaque(call)


def _product(call: Call) -> Mark:
    return multiply(call.ledger, call.args, call.mark, call.out) or opaque(call)


_ELEMENTWISE = (
    *("add", "sub", "rsub", "mul", "div", "pow", "neg", "abs", "exp", "log", "sqrt", "rsqrt"),
    *("reciprocal", "square", "sin", "cos", "erf", "relu", "relu6", "gelu", "silu", "sigmoid"),
    *("hardsigmoid", "hardswish", "hardtanh", "tanh", "elu", "selu", "celu", "leaky_relu"),
    *("softplus", "mish", "softsign", "clamp", "clamp_min", "clamp_max", "threshold", "where"),
    *("masked_fill", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_not"),
    *("logical_and", "logical_or", "_to_copy", "addcmul", "lerp", "copy", "floor", "round", "sign"),
    *("hardshrink", "_prelu_kernel", "log_sigmoid_forward", "expm1", "log1p", "nan_to_num"),
)
_MOVED = (
    *("permute", "transpose", "t", "slice", "select", "squeeze", "unsqueeze", "flip", "roll"),
    *("split", "split_with_sizes", "unbind", "repeat", "index", "index_select", "pixel_shuffle"),
    *("pixel_unshuffle", "narrow", "diagonal", "unfold", "native_channel_shuffle", "chunk"),
)
RULES: dict[str, Callable[[Call], Any]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_MOVED, _move),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten"), _reshape),
    **dict.fromkeys(("clone", "detach", "alias", "contiguous", "lift_fresh", "dropout"), _same),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm"), _reduced),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "cumsum"), _mixed),
    **dict.fromkeys(
        (
            *("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"),
            *("adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
            *("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"),
        ),
        _spatial,
    ),
    "expand": _expand,
    "constant_pad_nd": _pad,
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit"),
            "_native_batch_norm_legit_no_training",
        ),
        _batch_norm,
    ),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "convolution": _convolution,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
}
"""Name of an operation, without the underscore of the in-place one, to its rule."""
