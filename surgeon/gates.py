"""Relaxed masks over a frozen network: how gates open and close."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.edit import UnitMask, kept_weights

if TYPE_CHECKING:
    from surgeon.sites import GateSite
    from surgeon.subject import Subject


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
