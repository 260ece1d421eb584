"""The frozen network under surgery, split at the bottleneck into encoder and head."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from surgeon.architecture import Architecture
from surgeon.errors import OptionError
from surgeon.head import Head
from surgeon.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Subject:
    """A frozen classifier `logits = head(encoder(x))` with its own preprocessing.

    The bottleneck is the input of the last linear layer: timm's `forward_head(x,
    pre_logits=True)`. Parameters take no gradients and the network stays in eval mode; whoever
    wants other weights passes `overrides` to `forward`, which never touches these.
    """

    net: nn.Module
    """The network, eval mode, `requires_grad` off."""
    head: Head
    """The last linear layer."""
    architecture: Architecture
    preprocessing: Preprocessing
    label_names: tuple[str, ...] | None
    """Class names in class order, where the checkpoint has them."""
    path: Path
    """The weights file that was read."""
    sha256: str
    """Hash of that file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """`config.json` as it was read; empty if there was none."""
    amp_dtype: torch.dtype | None = None
    """Autocast type, None for full precision."""
    hub_id: str | None = None
    """`OWNER/NAME` of the repository it was read from."""
    notes: tuple[str, ...] = ()
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of a sliced network: module name to what its code reads beside its tensors."""

    @property
    def head_tensors(self) -> dict[str, Tensor]:
        """The head's parameters by name, not copied."""
        return {
            f"{module}.{name}": tensor.detach()
            for module in self.head.modules
            for name, tensor in self.net.get_submodule(module).named_parameters()
        }

    @property
    def head_is_free(self) -> bool:
        """Whether an erasure or a new head can be folded in."""
        return self.head.obstacle(self.head_tensors) is None

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return len(self.head.weight(self.head_tensors))

    @property
    def num_features(self) -> int:
        """Width D of the bottleneck."""
        return self.head.weight(self.head_tensors).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def forward(
        self, x: Tensor, overrides: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the network, with some tensors replaced for this call.

        Args:
            x: `[n, 3, H, W]` float32, preprocessed images on the subject's device.
            overrides: Parameters and buffers by name to use instead of the frozen ones.

        Returns:
            Bottleneck `[n, D]` and logits `[n, C]`, float32.
        """
        entered: dict[str, Tensor] = {}

        def note(name: str) -> RemovableHandle:
            def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                entered[name] = inputs[0]

            return self.net.get_submodule(name).register_forward_pre_hook(enter)

        handles = [note(name) for name in self.head.modules]
        try:
            with torch.autocast(
                self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                logits = functional_call(self.net, dict(overrides or {}), (x,))
        finally:
            for handle in handles:
                handle.remove()
        return self.head.features(entered).float(), logits.float()

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and persistent buffer by name, not copied."""
        return {name: tensor.detach() for name, tensor in self.net.state_dict().items()}

    def fingerprint(self) -> str:
        """Hash names, types and values of all parameters and buffers, hex."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            value = tensor.cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Subject:
        """Copy the subject with some parameters or buffers replaced."""
        net = copy.deepcopy(self.net)
        own = net.state_dict()
        for name, value in tensors.items():
            own[name].copy_(value)  # a tensor that has two names changes under both
        return replace(self, net=freeze(net))

    def to(self, device: str | torch.device, amp_dtype: torch.dtype | None = None) -> Subject:
        """Copy the subject to a device, with an autocast type.

        Raises:
            OptionError: The device is unknown or not there.
        """
        target = find_device(device)
        return replace(self, net=freeze(copy.deepcopy(self.net).to(target)), amp_dtype=amp_dtype)


def find_device(name: str | torch.device) -> torch.device:
    """Return a device that can be used; `auto` takes CUDA where it is there.

    Raises:
        OptionError: The device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):
            torch.empty(0, device=device)
            return device
        reason = "not supported"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
    raise OptionError(
        f"--device: '{name}' cannot be used here ({reason}); expected cpu, cuda or cuda:N where "
        "a GPU is present, or auto"
    )


def freeze(net: nn.Module) -> nn.Module:
    """Switch off gradients and training behaviour, in place; return the network.

    Kernels are laid out channels last, which convolutions are fastest in, on CPU and GPU.
    """
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def as_saved_(net: nn.Module) -> nn.Module:
    """Lay kernels out as a file holds them, in place; return the network.

    Others load a checkpoint so, and with another layout the last bits of the logits may differ.
    Kernels of one pixel fit both layouts and keep the one they have unless they are copied.
    """
    for parameter in net.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    return net
