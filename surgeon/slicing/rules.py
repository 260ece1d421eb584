"""What each operation does to channels: moves them, joins them, or makes new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from surgeon.slicing.calls import Call, meet, mix, of_parameters, opaque
from surgeon.slicing.marks import NONE, Mark
from surgeon.slicing.normalisations import batch_norm, group_norm, layer_norm
from surgeon.slicing.weights import convolve, multiply


def _elementwise(call: Call) -> Mark:
    """Join the channels of elements that meet."""
    tensors = call.tensors()
    marks = [call.mark(x) for x in tensors]
    if all(mark.channel is None for mark in marks):
        return of_parameters(call, mixed=False)
    factors = tensors if call.func.overloadpacket.__name__.startswith("mul") else []  # pyright: ignore
    return meet(call.ledger, marks, call.out.shape, factors)


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
        return of_parameters(call, mixed=True)
    dims = call.argument("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
    one = call.ledger.together(mark.channel, dims)
    known = mark.known.to(torch.uint8).amin(dim=tuple(dims), keepdim=True) > 0
    return Mark(known.reshape(call.out.shape), channel=one.reshape(call.out.shape))


def _mixed(call: Call) -> Mark:
    """Join the channels along one axis, whose elements depend on each other."""
    return mix(call, [int(call.args[1])])


def _spatial(call: Call) -> Mark:
    """Let every place of a channel answer for the others: pooling, resizing."""
    mark = call.ledger.as_activation(call.mark(call.args[0]))
    assert mark.channel is not None
    dims = list(range(call.args[0].dim() - 2, call.args[0].dim()))
    one = call.ledger.together(mark.channel, dims)
    known = mark.known.to(torch.uint8).amin(dim=tuple(dims), keepdim=True) > 0
    return Mark(known.expand(call.out.shape), channel=one.expand(call.out.shape))


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
        batch_norm,
    ),
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "convolution": _convolution,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
}
"""Name of an operation, without the underscore of the in-place one, to its rule."""
