"""Load a network that was made smaller: `net = load(FOLDER)`. Needs no other file of surgeon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn


def load(folder: str | Path = Path(__file__).parent, net: nn.Module | None = None) -> nn.Module:
    """Build the network that `config.json` names, and put the smaller tensors into it.

    Args:
        folder: Holds `model.safetensors`, `config.json` and `surgeon.json`.
        net: The network as it was, where neither timm, torchvision nor transformers has it.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    record = json.loads((Path(folder) / "surgeon.json").read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / "model.safetensors")
    # Copies lie at even addresses, on which the last bits of a product may depend.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    net = _build(config) if net is None else net
    return shrink_(net, tensors, record["slice"]["attributes"]).eval()


def _build(config: Mapping[str, Any]) -> nn.Module:
    if "model_type" in config:
        from transformers import AutoConfig, AutoModelForImageClassification

        return AutoModelForImageClassification.from_config(AutoConfig.for_model(**config))
    name, args = config["architecture"], config.get("model_args", {})
    if config.get("library", "timm") == "timm":
        import timm

        return timm.create_model(name, num_classes=config["num_classes"], **args)
    import torchvision

    return torchvision.models.get_model(name, num_classes=config["num_classes"], **args)


def shrink_(
    net: nn.Module, tensors: Mapping[str, Tensor], attributes: Mapping[str, Mapping[str, Any]]
) -> nn.Module:
    """Replace tensors by others of other shapes, and what the modules' code reads beside them.

    Args:
        net: Changed in place.
        tensors: Parameters and buffers by name; one the network lacks is a new additive term.
        attributes: Module name to attributes.
    """
    for name, values in attributes.items():
        for attribute, value in values.items():
            setattr(net.get_submodule(name), attribute, value)
    for name, tensor in tensors.items():
        owner, _, own = name.rpartition(".")
        module = net.get_submodule(owner)
        if own in module._buffers:
            module._buffers[own] = tensor
        else:
            module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
    return net
