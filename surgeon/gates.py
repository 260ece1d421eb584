"""Relaxed masks over a frozen network: where gates sit, and how they open and close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgeon.edit import Fold, UnitMask, kept_weights
from surgeon.errors import IncompatibleError

if TYPE_CHECKING:
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
        if name == subject.head_name and not gate_head:
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


def unit_sites(subject: Subject, *, own_output: bool = False) -> list[GateSite]:
    """List one site per module whose units (output channels) can be gated.

    A gate multiplies the unit's output after the directly following normalisation where there is
    one, else the unit's weight row and additive term; hidden units between two linear layers are
    gated after the activation, in the consumer's columns. Units of the head are never gated.

    Args:
        subject: The network.
        own_output: Gate the module's own output everywhere (the published placement).
    """
    followers = {} if own_output else _followers(subject)
    modules = dict(subject.net.named_modules())
    sites = []
    for name, module in modules.items():
        if not isinstance(module, _GATED) or name == subject.head_name:
            continue
        units = module.weight.shape[0]
        follower = followers.get(name)
        if follower is None:
            folds = _folds(name, module, 0)
        elif isinstance(modules[follower], nn.Linear):
            folds = (Fold(f"{follower}.weight", 1),)
        elif getattr(modules[follower], "weight", None) is None:
            continue  # a normalisation without scale undoes any gate before it
        else:
            folds = _folds(follower, modules[follower], 0)
        sites.append(GateSite(name, (units,), folds))
    return _found(sites)


def bottleneck_sites(subject: Subject) -> list[GateSite]:
    """List the site whose units are the features, one each; none where features are sums.

    Closing such a unit takes its feature away. Most networks with residual connections have no
    such site: what a block adds is one part of a feature only.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *subject.preprocessing.input_size, generator=generator).to(subject.device)
    tensors, half = subject.tensors(), subject.num_features // 2
    for site in unit_sites(subject):
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


def _folds(name: str, module: nn.Module, dim: int) -> tuple[Fold, ...]:
    present = [p for p in ("weight", "bias") if getattr(module, p, None) is not None]
    return tuple(Fold(f"{name}.{p}", dim) for p in present)


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
        if linear and not direct and names[module] != subject.head_name and whole is inputs[0]:
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


class _HardWeight(torch.autograd.Function):
    """Zero the weights of closed gates; pass the gradient through to every gate."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.where(logit >= 0, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class _Clamped(torch.autograd.Function):
    """min(1, 2 sigmoid(m / tau)) with the unclamped derivative everywhere (FFW, eq. 8)."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, temperature: float) -> Tensor:
        half = torch.sigmoid(logit / temperature)
        ctx.save_for_backward(half)
        ctx.temperature = temperature
        return (2 * half).clamp_max(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (half,) = ctx.saved_tensors
        return grads[0] * (2 / ctx.temperature) * half * (1 - half), None


class Gates:
    """Gate logits over the sites of one subject; a gate keeps where its logit is >= 0.

    `hard` gates are 0 or 1 in the forward pass and pass the gradient through unchanged; soft ones
    are min(1, 2 sigmoid(m / temperature)) with the derivative of the unclamped curve.

    Source:
        FFW (ECCV 2024), eq. 8 and 9. The hard forward is ours.
    """

    def __init__(
        self, subject: Subject, sites: Sequence[GateSite], *, initial: float, hard: bool
    ) -> None:
        self.sites = tuple(sites)
        self.hard = hard
        self.temperature = 1.0
        self._base = subject.tensors()
        # Laid out as the weights they multiply.
        self.logits = [
            torch.full_like(self._base[site.name], initial, requires_grad=True)
            if site.folds[0].dim is None
            else torch.full(site.shape, initial, device=subject.device, requires_grad=True)
            for site in self.sites
        ]

    def overrides(self, *, hard: bool | None = None) -> dict[str, Tensor]:
        """Return the gated parameters by name, differentiable in the logits.

        Args:
            hard: Override the gates' own kind: True gives what the folded network has.
        """
        hard = self.hard if hard is None else hard
        new: dict[str, Tensor] = {}
        for site, logit in zip(self.sites, self.logits, strict=True):
            whole = site.folds[0].dim is None
            if hard and whole:
                name = site.folds[0].parameter
                new[name] = _HardWeight.apply(logit, self._base[name])  # pyright: ignore
                continue
            factor: Tensor = (
                _HardWeight.apply(logit, torch.ones_like(logit))
                if hard
                else _Clamped.apply(logit, self.temperature)
            )  # pyright: ignore
            for fold in site.folds:
                base = new.get(fold.parameter, self._base[fold.parameter])
                new[fold.parameter] = fold.scale(base, factor)
        return new

    @torch.no_grad()
    def frozen(self) -> dict[str, Tensor]:
        """Return the parameters of the folded network: hard masks, no gradient."""
        return self.overrides(hard=True)

    def masks(self) -> dict[str, Tensor]:
        """Return the hard mask per weight tensor, bool on the CPU; empty for unit gates."""
        return {
            site.name: (logit.detach() >= 0).cpu()
            for site, logit in zip(self.sites, self.logits, strict=True)
            if site.folds[0].dim is None
        }

    def units(self) -> dict[str, UnitMask]:
        """Return the hard mask per module; empty for weight gates."""
        return {
            site.name: UnitMask((logit.detach() >= 0).cpu(), site.folds)
            for site, logit in zip(self.sites, self.logits, strict=True)
            if site.folds[0].dim is not None
        }

    def sparsity(self) -> float:
        """Return the share of gated weights that their own gate or their unit's closes."""
        kept = kept_weights(self.masks(), self.units(), self._base).values()
        return sum(int((~k).sum()) for k in kept) / sum(k.numel() for k in kept)

    def snapshot(self) -> list[Tensor]:
        """Copy the logits."""
        return [logit.detach().clone() for logit in self.logits]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Put copied logits back."""
        with torch.no_grad():
            for logit, kept in zip(self.logits, snapshot, strict=True):
                logit.copy_(kept)
