"""Where gates sit: single weights, units, heads, and the units that make one feature each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.edit import Fold, UnitMask
from surgeon.errors import IncompatibleError
from surgeon.slicing.separable import blocks, separable
from surgeon.slicing.trace import Flow, trace
from surgeon.slicing.working import RUN_ERRORS
from surgeon.subject import Subject

_GATED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class GateSite:
    """One tensor of gates and what it multiplies."""

    name: str
    """Parameter name (one gate per weight) or module name (one gate per unit)."""
    shape: tuple[int, ...]
    folds: tuple[Fold, ...]


def weight_sites(subject: Subject, *, gate_head: bool = False) -> list[GateSite]:
    """List one site per gated weight tensor.

    Every convolution and linear weight of the encoder; never additive terms, normalisation or
    embeddings; the head only with `gate_head`.
    """
    sites = []
    for name, module in subject.net.named_modules():
        if name in subject.head.modules and not gate_head:
            continue
        parameters = ["weight"] if isinstance(module, _GATED) else []
        if isinstance(module, nn.MultiheadAttention):
            parameters = [
                p
                for p in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
                if getattr(module, p, None) is not None
            ]
        for parameter in parameters:
            full = f"{name}.{parameter}" if name else parameter
            shape = tuple(getattr(module, parameter).shape)
            sites.append(GateSite(full, shape, (Fold(full, None),)))
    return _found(sites)


def module_sites(subject: Subject, *, own_output: bool = False) -> list[GateSite]:
    """List one site per module whose units (output channels) can be switched off.

    A gate multiplies the unit's output after the directly following normalisation where there is
    one, else the unit's weight row and additive term; hidden units between two linear layers are
    gated after the activation, in the consumer's columns. Units of the head are never gated.

    Args:
        subject: The network.
        own_output: Gate the module's own output everywhere (the published placement).
    """
    return _found(_single_sites(subject, {} if own_output else _followers(subject)))


def unit_sites(subject: Subject) -> list[GateSite]:
    """List the sites whose units can be cut out of the network exactly once they are off.

    Those of `module_sites` that qualify: not where a channel is a sum of several, along a residual
    connection. A head of an attention is one unit, in the columns of the layer behind it, and so
    is a group of a grouped convolution. A network without any such site has all sites listed.

    Args:
        subject: The network.
    """
    followers = _followers(subject)
    single = _single_sites(subject, followers)
    net = copy.deepcopy(subject.net).cpu()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *subject.preprocessing.input_size, generator=generator)
    try:
        whole = _block_sites(subject, followers, trace(net, x))
        own = {site.name for site in whole}
        places = {name: place for place, (name, _) in enumerate(net.named_modules())}
        every = [*(site for site in single if site.name not in own), *whole]
        every.sort(key=lambda site: places[site.name])
        exact = _separable(net, every, x)
    except RUN_ERRORS:  # it cannot be followed, so nothing can be cut
        return _found(single)
    return [site for site in every if site.name in exact] or _found(single)


def _single_sites(subject: Subject, followers: dict[str, str]) -> list[GateSite]:
    modules, sites = dict(subject.net.named_modules()), []
    for name, module in modules.items():
        if isinstance(module, _GATED) and name not in subject.head.modules:
            folds = _unit_folds(modules, name, followers.get(name))
            if folds:
                sites.append(GateSite(name, (module.weight.shape[0],), folds))
    return sites


def _unit_folds(
    modules: dict[str, nn.Module], name: str, follower: str | None, block: int = 1
) -> tuple[Fold, ...]:
    """Say where a unit is switched off; empty where a normalisation would undo it."""
    if follower is None:
        return _folds(name, modules[name], block)
    if isinstance(modules[follower], nn.Linear):
        return (Fold(f"{follower}.weight", 1, block),)
    if getattr(modules[follower], "weight", None) is None:
        return ()
    return _folds(follower, modules[follower], block)


def _block_sites(subject: Subject, followers: dict[str, str], flow: Flow) -> list[GateSite]:
    """List heads of attention, and groups of convolutions, which go as a whole or not at all."""
    modules, sites = dict(subject.net.named_modules()), []
    for block in blocks(flow):
        if block.consumer is not None:
            folds = (Fold(block.consumer, 1, block.width),)
        else:
            folds = _unit_folds(modules, block.maker, followers.get(block.maker), block.width)
        if folds:
            sites.append(GateSite(block.maker, (block.count,), folds))
    return sites


def _separable(net: nn.Module, sites: list[GateSite], x: Tensor) -> set[str]:
    """Return the sites whose units, a random half of them off, can be cut out."""
    generator = torch.Generator().manual_seed(0)
    tensors, off = net.state_dict(), {}
    for site in sites:
        keep = torch.randperm(site.shape[0], generator=generator) >= (site.shape[0] + 1) // 2
        for fold in site.folds:
            tensors[fold.parameter].copy_(fold.scale(tensors[fold.parameter], keep.float()))
        rows = len(net.get_submodule(site.name).weight)  # pyright: ignore[reportArgumentType]
        off[site.name] = ~UnitMask(keep, site.folds).rows(rows)
    return separable(net, x, off)


def bottleneck_sites(subject: Subject) -> list[GateSite]:
    """List the site whose units are the features, one each; none where features are sums.

    Closing such a unit takes its feature away. Most networks with residual connections have no
    such site: what a block adds is one part of a feature only.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *subject.preprocessing.input_size, generator=generator).to(subject.device)
    tensors, half = subject.tensors(), subject.num_features // 2
    for site in module_sites(subject):
        if site.shape != (subject.num_features,):
            continue
        keep = torch.ones(site.shape, device=subject.device)
        keep[:half] = 0
        closed = {f.parameter: f.scale(tensors[f.parameter], keep) for f in site.folds}
        with torch.no_grad():
            features, _ = subject.forward(x, closed)
        varies = features.amax(0) > features.amin(0)
        if not bool(varies[:half].any()) and bool(varies[half:].any()):
            return [site]
    return []


def _found(sites: list[GateSite]) -> list[GateSite]:
    if not sites:
        raise IncompatibleError(
            "the network: no convolution or linear layer outside the head, so there is nothing to "
            "gate; expected an encoder with weights"
        )
    return sites


def _folds(name: str, module: nn.Module, block: int) -> tuple[Fold, ...]:
    present = [p for p in ("weight", "bias") if getattr(module, p, None) is not None]
    return tuple(Fold(f"{name}.{p}", 0, block) for p in present)


def _is_elementwise(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, nn.Identity | nn.Dropout):
        return True
    home = kind.__module__
    return (
        ("activation" in home)
        and "softmax" not in kind.__name__.lower()
        and not list(module.parameters())
    )


def _followers(subject: Subject) -> dict[str, str]:
    """Map a module to the normalisation, or consuming linear layer, that directly follows it."""
    made_by: dict[int, str] = {}
    kept: list[Tensor] = []  # keeps ids unique while the trace runs
    found: dict[str, str] = {}
    calls: dict[str, int] = {}
    modules = {n: m for n, m in subject.net.named_modules() if n}
    names = {module: name for name, module in modules.items()}

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[names[module]] = calls.get(names[module], 0) + 1
        if not inputs or not isinstance(inputs[0], Tensor):
            return
        whole = inputs[0] if id(inputs[0]) in made_by else inputs[0]._base  # permuted, perhaps
        producer = made_by.get(id(whole))
        if whole is None or producer is None:
            return
        source, direct = producer.removesuffix("*"), not producer.endswith("*")
        units = _channels(modules[source], whole)
        if direct and "norm" in type(module).__name__.lower() and _fits(module, units[0]):
            if units == _channels(module, inputs[0]):
                found[source] = names[module]
            return
        linear = isinstance(module, nn.Linear) and isinstance(modules[source], nn.Linear)
        ends = names[module] in subject.head.modules
        if linear and not direct and not ends and whole is inputs[0]:
            found.setdefault(source, names[module])

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        kept.append(output)
        if isinstance(module, _GATED):
            made_by[id(output)] = names[module]
        elif _is_elementwise(module) and inputs and id(inputs[0]) in made_by:
            before = made_by[id(inputs[0])]
            step = "" if isinstance(module, nn.Identity | nn.Dropout) else "*"
            made_by[id(output)] = before.removesuffix("*") + (step or "*" * before.endswith("*"))
        elif not any(True for _ in module.children()):
            made_by.pop(id(output), None)

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        with torch.no_grad():
            size = subject.preprocessing.input_size
            subject.forward(torch.zeros(1, *size, device=subject.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: other for name, other in found.items() if calls[name] == calls[other] == 1}


def _channels(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return number and stride of the channels that a layer makes or a normalisation scales."""
    kind = type(module).__name__.lower()
    vectors = "2d" not in kind and ("layernorm" in kind or "rmsnorm" in kind)
    dim = -1 if vectors or isinstance(module, nn.Linear) else 1
    return x.shape[dim], x.stride(dim)


def _fits(norm: nn.Module, units: int) -> bool:
    weight = getattr(norm, "weight", None)
    return weight is None or (weight.dim() == 1 and weight.numel() == units)
