"""Cut what is switched off out of a folded network, and prove that no logit changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.edit import Edit
from surgeon.errors import IncompatibleError
from surgeon.load_sliced import shrink_
from surgeon.slicing.plan import choose, plan
from surgeon.slicing.trace import Flow, trace
from surgeon.slicing.working import RUN_ERRORS, working
from surgeon.subject import Subject, freeze

SHARED = "shares its channel with a sum, a normalisation over channels, or the output"
SHAPE = "keeps a layer's groups of one size, its width a multiple, or its last channel"
CODE = "the network's code fixes the width"
LEAK = "is not zero for every image, or a constant that a padding makes uneven"


@dataclass(frozen=True, eq=False)
class Cut:
    """A network with what was switched off taken out.

    Attributes:
        subject: The smaller network.
        units: Module name to units it had, and has, where these differ.
        kept: Module name to reason to number of units that are off and stay.
        parameters: What the network had, and has.
    """

    subject: Subject
    parameters: tuple[int, int]
    units: Mapping[str, tuple[int, int]]
    kept: Mapping[str, Mapping[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Return what was taken out, by layer, and what is off and stays, with the reason."""
        return {
            "parameters": dict(zip(("base", "left"), self.parameters, strict=True)),
            "layers": {
                name: {"units": had, "left": has} for name, (had, has) in sorted(self.units.items())
            },
            "off_but_left": {name: dict(own) for name, own in sorted(self.kept.items())},
        }

    def layer(self, name: str, units: int) -> dict[str, Any]:
        """Return one layer's columns of `layers.csv`."""
        reasons = "; ".join(f"{n} {reason}" for reason, n in self.kept.get(name, {}).items())
        return {"units_left": self.units.get(name, (units, units))[1], "off_but_left": reasons}


def units_off(subject: Subject, edit: Edit) -> dict[str, Tensor]:
    """Return module name to `[U]` bool, the outputs that an edit switches off."""
    tensors = subject.tensors()
    return {name: ~unit.rows(len(tensors[f"{name}.weight"])) for name, unit in edit.units.items()}


def cut(folded: Subject, off: Mapping[str, Tensor], *, round_to: int = 1) -> Cut:
    """Take every channel out that no logit depends on.

    The logits of the smaller network are compared with those of the folded one in float64, on
    random images. Where they differ, or the network's code does not run, the layers that cause it
    keep their width.

    Args:
        folded: The network with its masks folded in.
        off: Module name to `[U]` bool, the units that an edit switches off; the record says of
            those that stay why they do.
        round_to: What the number of outputs of every layer is a multiple of, as far as it goes.

    Raises:
        IncompatibleError: The network cannot be followed.
    """
    exact = copy.deepcopy(folded.net).cpu().double()
    generator = torch.Generator().manual_seed(0)
    size = folded.preprocessing.input_size
    x = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    try:
        flow = trace(exact, x[:1])
    except RUN_ERRORS as error:
        raise IncompatibleError(
            f"{folded.architecture}: its channels cannot be followed "
            f"({str(error).splitlines()[0]}); export it without --slice"
        ) from error
    found, fixed = working(exact, flow, x, round_to=round_to)
    whole = copy.deepcopy(folded.net).cpu()
    smaller = plan(whole, flow, found.gone)
    net = shrink_(whole, smaller.tensors, smaller.attributes)
    _, shaped = choose(exact, flow, keep=fixed, round_to=round_to)
    counts = {
        edge.module: (len(edge.outs), int((~found.gone[edge.outs]).sum())) for edge in flow.edges
    }
    attributes = {
        name: {**folded.attributes.get(name, {}), **smaller.attributes.get(name, {})}
        for name in {**folded.attributes, **smaller.attributes}
    }
    return Cut(
        subject=replace(folded, net=freeze(net), attributes=attributes),
        parameters=(_count(folded.net), _count(net)),
        units={name: (had, has) for name, (had, has) in counts.items() if has < had},
        kept=_reasons(flow, off, found.gone, fixed, shaped),
    )


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _reasons(
    flow: Flow, off: Mapping[str, Tensor], gone: Tensor, fixed: Set[int], shaped: Set[int]
) -> dict[str, dict[str, int]]:
    makers = torch.zeros(flow.num_groups, dtype=torch.int64)
    for edge in flow.edges:
        makers += torch.bincount(edge.outs, minlength=flow.num_groups)
    found: dict[str, dict[str, int]] = {}
    for edge in flow.edges:
        switched = off.get(edge.module)
        if switched is None or edge.module in found or len(switched) != len(edge.outs):
            continue
        for group in edge.outs[switched & ~gone[edge.outs]].tolist():
            if group in fixed:
                reason = CODE
            elif group in shaped:
                reason = SHAPE
            else:
                reason = SHARED if group == 0 or int(makers[group]) > 1 else LEAK
            own = found.setdefault(edge.module, {})
            own[reason] = own.get(reason, 0) + 1
    return found
