"""The last layer as one linear map of the bottleneck, wherever a network keeps its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgeon.errors import IncompatibleError


@dataclass(frozen=True)
class Head:
    """Name the modules that make `logits = features @ weight.T + bias_term`.

    The features are what enters the modules, side by side, and the logits are the mean of what
    leaves them: two heads on two tokens are one matrix. So is a kernel of one pixel.
    """

    modules: tuple[str, ...]
    """Linear layers, or convolutions of one pixel."""
    linear: bool = True
    """False where an activation and a mean over positions follow, as in SqueezeNet: the logits
    are no map of the pooled features then, and nothing can be folded into the head."""

    def __str__(self) -> str:
        return " and ".join(self.modules)

    def features(self, entered: Mapping[str, Tensor]) -> Tensor:
        """Put together what entered each module, averaged over positions: `[n, D]`."""
        vectors = [entered[module] for module in self.modules]
        return _joined([x.flatten(2).mean(2) if x.dim() > 2 else x for x in vectors])

    def weight(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return `[C, D]` out of a network's tensors by name."""
        parts = [tensors[f"{module}.weight"].flatten(1) for module in self.modules]
        return _joined(parts) / len(parts) if len(parts) > 1 else parts[0]

    def bias_term(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return `[C]` out of a network's tensors by name; None where a module has none."""
        parts = [tensors.get(f"{module}.bias") for module in self.modules]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            return None
        return torch.stack(present).mean(0) if len(parts) > 1 else present[0]

    def parameters(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """List the names of its tensors, of those that a network has."""
        names = [f"{module}.{kind}" for kind in ("weight", "bias") for module in self.modules]
        return [name for name in names if name in tensors]

    def split(self, matrix: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Deal the columns of `[C, D]` to the modules' weights, in the shapes those have."""
        names = [f"{module}.weight" for module in self.modules]
        parts = matrix.split([tensors[name].shape[1] for name in names], 1)
        return {n: p.reshape(tensors[n].shape) for n, p in zip(names, parts, strict=True)}

    def replaced(
        self, weight: Tensor, bias_term: Tensor | None, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the tensors by name that make the head another.

        Args:
            weight: `[C, D]`.
            bias_term: `[C]`; None where it has none.
            tensors: The network's, for their shapes.
        """
        found = self.split(weight * len(self.modules), tensors)
        if bias_term is not None:
            found |= {f"{module}.bias": bias_term for module in self.modules}
        return found

    def obstacle(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say why neither an erasure nor a new head can be folded in; None where both can."""
        if not self.linear:
            return f"the head ({self}) is followed by an activation, so its logits are not linear"
        if self.bias_term(tensors) is None:
            return f"the head ({self}) has no additive term"
        return None

    def check(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Refuse to fold something in where there is an obstacle.

        Args:
            tensors: The network's.
            what: What it is, for the message.

        Raises:
            IncompatibleError: There is an obstacle.
        """
        obstacle = self.obstacle(tensors)
        if obstacle:
            raise IncompatibleError(f"{obstacle}: {what} cannot be folded in")

    def check_linear(self, method: str) -> None:
        """Refuse a method that computes logits out of features.

        Raises:
            IncompatibleError: No linear map gives them.
        """
        if not self.linear:
            raise IncompatibleError(
                f"the head ({self}) is followed by an activation: {method} needs one that is linear"
            )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]


def find_head(net: nn.Module, input_size: Iterable[int]) -> Head:
    """Find the linear layers whose outputs make the network's output.

    Args:
        net: Network in eval mode.
        input_size: Channels, height, width.

    Raises:
        IncompatibleError: The network does not run on that size, or does not end in one linear
            layer, or two that are averaged, on one vector per image.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
    names = {module: name for name, module in net.named_modules() if _is_matrix(module)}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.setdefault(names[module], []).append((inputs[0], output))

    handles = [module.register_forward_hook(note) for module in names]
    size = tuple(input_size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *size, generator=generator).to(next(net.parameters()).device)
    try:
        with torch.no_grad():
            logits = net(image)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise IncompatibleError(
            f"the network does not run on one image of size {size} "
            f"({str(error).splitlines()[0]}); pass --input-size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor):
        raise IncompatibleError(f"the network returns a {type(logits).__name__}, expected logits")
    return _last(calls, logits)


def _is_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1 and module.stride == (1, 1)
    return isinstance(module, nn.Linear)


def _last(calls: Mapping[str, list[tuple[Tensor, Tensor]]], logits: Tensor) -> Head:
    for name, seen in calls.items():
        entered, left = seen[-1]
        if left.data_ptr() == logits.data_ptr() and left.numel() == logits.numel():
            if entered.flatten(1).shape == entered.shape[:2] and len(seen) == 1:
                return Head((name,))
            raise IncompatibleError(
                f"head '{name}': found input of shape {list(entered.shape)} in {len(seen)} calls, "
                "expected one vector per image, once"
            )
    once = {name: seen[0][1] for name, seen in calls.items() if len(seen) == 1}
    vectors = [name for name, left in once.items() if left.shape == logits.shape]
    if len(vectors) > 1 and _same((once[vectors[-2]] + once[vectors[-1]]) / 2, logits):
        return Head(tuple(vectors[-2:]))
    maps = [n for n, left in once.items() if left.dim() == 4 and left.shape[:2] == logits.shape]
    if maps and _same(once[maps[-1]].mean((2, 3)), logits):
        return Head((maps[-1],))
    if maps and _same(once[maps[-1]].relu().mean((2, 3)), logits):
        return Head((maps[-1],), linear=False)
    raise IncompatibleError(
        "the network's last layer: expected one linear layer whose output is the logits, or two "
        "that are averaged; networks that end otherwise are not supported"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6)
