"""Run a network once and note what becomes of every channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from surgeon.slicing.calls import Call, opaque
from surgeon.slicing.marks import FIXED, Edge, Ledger, Mark, constant, fixed
from surgeon.slicing.rules import RULES


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the channels of a network go.

    Attributes:
        num_groups: How many groups of channels there are that go or stay together; 0 stays.
        edges: Every use of a weight, in order; its channels are the numbers of groups.
        acts: Parameter name to `[numel]` int64, the group each element acts on, 0 where it acts
            on several or on none.
    """

    num_groups: int
    edges: tuple[Edge, ...]
    acts: Mapping[str, Tensor]


class _Trace(TorchDispatchMode):
    """Follows every operation while it is carried out."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self._marks: Any = WeakTensorKeyDictionary()
        self._writes: dict[int, int] = {}

    def mark(self, x: Tensor) -> Mark:
        """Return the mark of a tensor; one that was written to by another name stays whole."""
        found = self._marks.get(x)
        if found is None:
            return self.ledger.parameter(x) or constant(x.shape)
        mark, version = found
        if version == self._version(x):
            return mark
        if mark.channel is not None:
            self.ledger.pair(mark.channel, FIXED)
        return fixed(x.shape)

    def put(self, x: Tensor, mark: Mark) -> None:
        """Mark a tensor."""
        self._marks[x] = mark, self._version(x)

    def _version(self, x: Tensor) -> int:
        """Count the writes to a tensor's memory; inference mode keeps no count of its own."""
        return self._writes.get(x.untyped_storage().data_ptr(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # composite operations come whole in inference mode
            whole = func.decompose(*args, **kwargs)
        if whole is not NotImplemented:
            return whole
        name = func.overloadpacket.__name__
        before = self._before(func, args)
        out = func(*args, **kwargs)
        outs = [x for x in (out if isinstance(out, tuple | list) else [out])]
        if not outs or not isinstance(outs[0], Tensor):
            return out

        def entering(x: Tensor) -> Mark:
            return before.get(id(x)) or self.mark(x)

        call = Call(self.ledger, func, args, kwargs, outs[0], entering)
        if not call.tensors():
            marks: Any = constant(outs[0].shape)
        else:
            rule = RULES.get(name.removesuffix("_") if func._schema.is_mutable else name)
            marks = (rule or opaque)(call)
        marks = marks if isinstance(marks, list) else [marks]
        if func._schema.is_mutable:
            memory = outs[0].untyped_storage().data_ptr()
            self._writes[memory] = self._writes.get(memory, 0) + 1
        for x, mark in zip(outs, marks, strict=False):
            self.put(x, mark)
        for x in outs[len(marks) :]:
            if isinstance(x, Tensor):
                self.put(x, fixed(x.shape))
        return out

    def _before(self, func: Any, args: Any) -> dict[int, Mark]:
        """Marks of what an in-place operation is about to overwrite."""
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            return {id(args[0]): self.mark(args[0])}
        return {}


@torch.inference_mode()  # without it a view is another object than the operation returned
def trace(net: nn.Module, x: Tensor) -> Flow:
    """Run a network on one image and follow its channels.

    Args:
        net: In eval mode, on the CPU; its zeros are taken as they are.
        x: `[1, 3, H, W]`, without zeros.
    """
    ledger, fast = Ledger(net), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole attention
    try:
        with sdpa_kernel([SDPBackend.MATH]), _Trace(ledger) as running:
            running.put(x, fixed(x.shape))
            ends = running.mark(net(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if ends.channel is not None:
        ledger.pair(ends.channel, FIXED)
    return _grouped(ledger)


def _grouped(ledger: Ledger) -> Flow:
    """Number what goes together."""
    first_use: dict[str, Edge] = {}
    for edge in ledger.edges:
        other = first_use.setdefault(edge.parameter, edge)
        if other is not edge:  # one weight, used twice
            for mine, its in ((edge.outs, other.outs), (edge.ins, other.ins)):
                ledger.pair(mine, its if mine.shape == its.shape else FIXED)
    n = ledger.num_channels
    a, b = torch.cat([torch.zeros(2, 1, dtype=torch.int64), *ledger.pairs], dim=1).numpy()
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(n, n))
    count, labels = connected_components(graph, directed=False)
    labels = torch.from_numpy(labels).long()
    # The group of what stays is number 0.
    kept = int(labels[FIXED])
    group = torch.where(labels == kept, 0, torch.where(labels == 0, kept, labels))
    edges = tuple(
        Edge(**{**vars(edge), "outs": group[edge.outs], "ins": group[edge.ins.clamp_min(0)]})
        for edge in ledger.edges
    )
    return Flow(int(count), edges, _acts(ledger, group))


def _acts(ledger: Ledger, group: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if not ledger.met:
        return found
    source, channel = torch.cat(ledger.met, dim=1)
    pairs = torch.stack([source, group[channel]]).unique(dim=1)
    elements, counts = pairs[0].unique(return_counts=True)
    single = torch.isin(pairs[0], elements[counts == 1])
    for name, start, end in zip(ledger.names, ledger.offsets[:-1], ledger.offsets[1:], strict=True):
        own = (pairs[0] >= start) & (pairs[0] < end)
        if bool(own.any()):
            acts = torch.zeros(end - start, dtype=torch.int64)
            taken = own & single
            acts[pairs[0][taken] - start] = pairs[1][taken]
            found[name] = acts
    return found
