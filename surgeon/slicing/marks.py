"""What slicing has to know of every element of every tensor while a network runs once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

FIXED, NONE = 0, -1
"""The channel that is never removed (images, logits), and that of constants, which fit any."""


@dataclass(frozen=True, eq=False)
class Mark:
    """Where the elements of one tensor come from.

    Attributes:
        known: Bool of the tensor's shape: the value is the same for every image.
        channel: int64 of the tensor's shape, the channel each element belongs to, `NONE` for
            constants; None for tensors made of parameters alone.
        source: int64 of the tensor's shape, the parameter element each element is made from,
            `NONE` where there is no single one; None for activations.
        mixed: Elements of a parameter-made tensor depend on each other (a standardised weight).
        ties: Sources, of the tensor's shape, of parameters that scale this one.
    """

    known: Tensor
    channel: Tensor | None = None
    source: Tensor | None = None
    mixed: bool = False
    ties: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Edge:
    """One use of a weight: it takes one channel's elements and adds them into another's.

    Attributes:
        parameter: Name of the weight.
        module: Name of the module that owns it.
        out_axis: Axis of the parameter along the outputs.
        in_axis: Axis along the inputs, of one group.
        out_index: `[O]` int64, position of every output along `out_axis`.
        in_index: `[I]` int64, position of every input of one group along `in_axis`.
        outs: `[O]` int64 channels.
        ins: `[groups, I]` int64 channels.
        groups: Groups of a convolution, 1 otherwise.
        weight: `[O, I, ...]`, as the operation took it.
        constant: `[groups, I]` float64, what the input is for every image at every place; NaN
            where it varies, or where a padding makes its contribution vary.
        intact: The operation took the parameter as it is.
    """

    parameter: str
    module: str
    out_axis: int
    in_axis: int
    out_index: Tensor
    in_index: Tensor
    outs: Tensor
    ins: Tensor
    groups: int
    weight: Tensor
    constant: Tensor
    intact: bool


@dataclass(eq=False)
class Ledger:
    """What has been found out while a network runs; `_` methods of rules write to it."""

    net: nn.Module
    num_channels: int = 1
    pairs: list[Tensor] = field(default_factory=list)
    """`[2, n]` int64 channels that go together."""
    met: list[Tensor] = field(default_factory=list)
    """`[2, n]` int64: a parameter element and the channel it acts on."""
    edges: list[Edge] = field(default_factory=list)

    def __post_init__(self) -> None:
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        self.names, self.offsets, self.tensors = list(tensors), [0], tensors
        for tensor in tensors.values():
            self.offsets.append(self.offsets[-1] + tensor.numel())
        self._place = {id(tensor): i for i, tensor in enumerate(tensors.values())}

    def parameter(self, tensor: Tensor) -> Mark | None:
        """Mark a parameter or buffer of the network; None for any other tensor."""
        place = self._place.get(id(tensor))
        if place is None:
            return None
        start = self.offsets[place]
        source = torch.arange(start, start + tensor.numel()).view(tensor.shape)
        return Mark(_all(tensor.shape, True), source=source)

    def element(self, sources: Tensor) -> tuple[str, Tensor] | None:
        """Name the parameter all of some elements belong to, and their places in it."""
        if sources.numel() == 0 or int(sources.min()) < 0:
            return None
        place = int(
            torch.searchsorted(torch.tensor(self.offsets), sources.flatten()[0], right=True)
        )
        start, end = self.offsets[place - 1], self.offsets[place]
        if int(sources.min()) < start or int(sources.max()) >= end:
            return None
        return self.names[place - 1], sources - start

    def fresh(self, n: int) -> Tensor:
        """Return n new channels."""
        self.num_channels += n
        return torch.arange(self.num_channels - n, self.num_channels)

    def pair(self, a: Tensor, b: Tensor | int) -> None:
        """Say that channels go together; constants are passed over."""
        one, other = torch.broadcast_tensors(a, torch.as_tensor(b))
        there = (one >= 0) & (other >= 0) & (one != other)
        if bool(there.any()):
            self.pairs.append(_different(one[there], other[there]))

    def meet(self, source: Tensor, channel: Tensor) -> None:
        """Say that parameter elements act on channels."""
        source, channel = torch.broadcast_tensors(source, channel)
        there = (source >= 0) & (channel >= 0)
        if bool(there.any()):
            self.met.append(_different(source[there], channel[there]))

    def as_activation(self, mark: Mark) -> Mark:
        """Give the elements of a parameter-made tensor channels of their own."""
        if mark.channel is not None:
            return mark
        assert mark.source is not None
        if int(mark.source.max()) < 0:
            return Mark(mark.known, channel=torch.full_like(mark.source, NONE))
        different, inverse = mark.source.unique(return_inverse=True)
        channels = self.fresh(len(different))
        self.meet(different, channels)
        return Mark(mark.known, channel=torch.where(mark.source >= 0, channels[inverse], NONE))

    def together(self, channel: Tensor, dims: Sequence[int]) -> Tensor:
        """Say that the channels along some axes go together; return one of each, axes kept."""
        one = first(channel, dims)
        self.pair(channel, one)
        return one


def _different(a: Tensor, b: Tensor) -> Tensor:
    """Return `[2, n]`, every pair of numbers once."""
    both = ((a << 32) | b).unique()
    return torch.stack([both >> 32, both & 0xFFFFFFFF])


def first(channel: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the highest channel along some axes, which are kept; `NONE` where there is none."""
    return channel.amax(dim=tuple(dims), keepdim=True) if dims else channel


def lowest(channel: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the lowest channel along some axes, constants passed over."""
    if not dims:
        return channel
    far = torch.iinfo(channel.dtype).max
    low = channel.masked_fill(channel < 0, far).amin(dim=tuple(dims), keepdim=True)
    return low.masked_fill(low == far, NONE)


def constant(shape: Iterable[int]) -> Mark:
    """Mark a tensor that is made while the network runs, from nothing."""
    shape = tuple(shape)
    return Mark(_all(shape, True), channel=torch.full(shape, NONE))


def fixed(shape: Iterable[int], *, known: bool = False) -> Mark:
    """Mark a tensor whose elements must all stay."""
    shape = tuple(shape)
    return Mark(_all(shape, known), channel=torch.full(shape, FIXED))


def _all(shape: Iterable[int], value: bool) -> Tensor:
    return torch.full(tuple(shape), value)
