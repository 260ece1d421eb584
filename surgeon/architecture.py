"""Which network a checkpoint belongs to, and how to build it empty."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from surgeon import hugging_face
from surgeon.errors import CheckpointError, IncompatibleError, OptionError
from surgeon.identification import identify

LIBRARIES = ("timm", "torchvision")


@dataclass(frozen=True)
class Architecture:
    """Name a network well enough to build it again."""

    library: str
    """`timm`, `torchvision`, `transformers` or `factory`."""
    name: str
    """Registry name, class of transformers, or `package.module:function` of a factory."""
    num_classes: int | None = None
    """Outputs of the head; None leaves it to a factory."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the constructor, for example `img_size`; for transformers the
    whole configuration."""

    def build(self) -> nn.Module:
        """Build the network with fresh weights on the CPU.

        Raises:
            IncompatibleError: The constructor fails or does not return a module.
        """
        try:
            net = _builder(self.library, self.name)(**self._arguments())
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AssertionError,
            AttributeError,
            KeyError,
            OSError,
        ) as error:
            raise IncompatibleError(
                f"{self}: cannot be built ({error}); check --arch and --model-kwargs"
            ) from error
        if not isinstance(net, nn.Module):
            raise IncompatibleError(
                f"{self}: returned a {type(net).__name__}, expected a torch.nn.Module"
            )
        return net

    def _arguments(self) -> dict[str, Any]:
        if self.library == "transformers":
            return {"config": self.model_args}
        known = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return {**known, **self.model_args}

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


def _builder(library: str, name: str) -> Callable[..., nn.Module]:
    if library == "timm":
        return lambda **kwargs: timm.create_model(name, pretrained=False, **kwargs)
    if library == "torchvision":
        return lambda **kwargs: torchvision.models.get_model(name, weights=None, **kwargs)
    if library == "transformers":
        return hugging_face.build
    return _import_factory(name)


def _import_factory(name: str) -> Callable[..., nn.Module]:
    module_name, colon, function = name.partition(":")
    if not (colon and module_name and function):
        raise OptionError(f"--factory: found '{name}', expected package.module:function")
    if os.getcwd() not in sys.path:  # noqa: PTH109  the user's module lies where they stand
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"--factory {name}: cannot be imported ({error}); run where the module lies, or put it "
            "on PYTHONPATH"
        ) from error
    if not callable(found):
        raise OptionError(f"--factory {name}: is a {type(found).__name__}, expected a function")
    return found


def differences(net: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """List every missing, unexpected and misshapen key, one line each.

    Batch counters of BatchNorm may be missing: checkpoints older than PyTorch 0.4.1 have none.
    """
    expected = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    lines = [
        f"missing {n} {list(s)}"
        for n, s in expected.items()
        if n not in found and not n.endswith("num_batches_tracked")
    ]
    lines += [f"unexpected {n} {list(s)}" for n, s in found.items() if n not in expected]
    lines += [
        f"{n}: found {list(found[n])}, expected {list(s)}"
        for n, s in expected.items()
        if n in found and found[n] != s
    ]
    return lines


def resolve_architecture(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    arch: str | None = None,
    factory: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    where: str = "checkpoint",
) -> tuple[Architecture, str]:
    """Decide which network the tensors belong to.

    Args:
        tensors: The checkpoint's tensors.
        config: Its `config.json`, or empty.
        arch: `timm:NAME`, `torchvision:NAME`, or a bare name: then the registry whose keys and
            shapes match exactly is taken, timm on a tie.
        factory: `package.module:function` that returns the network.
        model_args: Constructor arguments over those of the config.
        where: The checkpoint's name, for messages.

    Returns:
        The architecture and one sentence that says where it came from.

    Raises:
        OptionError: Unknown name or library.
        CheckpointError: Nothing names the architecture.
    """
    if factory and arch:
        raise OptionError("--arch and --factory: found both, expected one")
    source = "--arch" if arch else "config.json"
    wanted = factory or (arch or "").rpartition(":")[2]
    inherited = wanted in (
        "",
        config.get("architecture"),
    )  # arguments of another network do not fit
    args = {**(config.get("model_args", {}) if inherited else {}), **(model_args or {})}
    if factory:
        return Architecture("factory", factory, None, args), f"network from --factory {factory}"
    if not arch and hugging_face.is_of_transformers(config):
        name = (config.get("architectures") or [config["model_type"]])[0]
        chosen = Architecture("transformers", str(name), None, config)
        return chosen, f"{chosen} from config.json"
    if not arch:
        name, library = config.get("architecture"), config.get("library", "timm")
        if not isinstance(name, str):
            return _identified(tensors, config, args, where)
        if library == "factory":
            raise CheckpointError(f"{where}: config.json names a factory; pass --factory {name}")
        arch = f"{library}:{name}"
    library, colon, name = arch.partition(":")
    if colon and library not in LIBRARIES:
        raise OptionError(f"--arch: found library '{library}', expected timm or torchvision")
    candidates = [library] if colon else [lib for lib in LIBRARIES if _is_known(lib, arch)]
    name = name if colon else arch
    if not candidates or not _is_known(candidates[0], name):
        raise OptionError(
            f"--arch: '{name}' is not a model of {library if colon else 'timm or torchvision'}; "
            "choose one from its list_models()"
        )
    found = [
        Architecture(lib, name, _num_classes(lib, name, tensors, config, args), args)
        for lib in candidates
    ]
    exact = [a for a in found if len(found) > 1 and not differences(_empty(a), tensors)]
    chosen = (exact or found)[0]
    how = (
        f", the registry whose keys and shapes match ({len(found)} know the name)" if exact else ""
    )
    return chosen, f"{chosen} from {source}{how}"


def _identified(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], args: Mapping[str, Any], where: str
) -> tuple[Architecture, str]:
    """Find the one network whose tensors have these names and shapes."""
    found = identify(tensors)
    if len(found.exact) == 1:
        library, _, name = found.exact[0].partition(":")
        classes = _num_classes(library, name, tensors, config, args)
        chosen = Architecture(library, name, classes, args)
        return chosen, f"{chosen}, by names and shapes the one of {found.known} networks that fits"
    nothing = f"{where}: no config.json with an 'architecture' beside it, and its tensors fit"
    if found.exact:
        raise CheckpointError(
            f"{nothing} {len(found.exact)} networks alike; pass --arch with the one it is of",
            found.exact,
        )
    raise CheckpointError(
        f"{nothing} none of {found.known} networks; pass --arch timm:NAME, --arch torchvision:NAME "
        "or --factory package.module:function" + ("; nearest:" if found.nearest else ""),
        found.nearest,
    )


def own_preprocessing(architecture: Architecture, net: nn.Module) -> Mapping[str, Any]:
    """Return the preprocessing a network declares, with timm's keys; empty if it declares none.

    timm's and a factory's networks carry `pretrained_cfg`; for torchvision it is that of the
    default weights.
    """
    if architecture.library != "torchvision":
        return getattr(net, "pretrained_cfg", None) or {}
    weights = list(torchvision.models.get_model_weights(architecture.name))
    preset = weights[-1].transforms() if weights else None
    if preset is None or not hasattr(preset, "crop_size"):
        return {}
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return {
        "input_size": (3, crop, crop),
        "crop_pct": crop / resize,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
    }


def _is_known(library: str, name: str) -> bool:
    if library == "timm":
        return timm.is_model(name)
    return name in torchvision.models.list_models(module=torchvision.models)


def _empty(architecture: Architecture) -> nn.Module:
    """Build on the meta device: names and shapes without memory or time."""
    with torch.device("meta"):
        return architecture.build()


def _num_classes(
    library: str,
    name: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    args: Mapping[str, Any],
) -> int | None:
    """Read the number of classes from the config, else from the checkpoint's last linear layer."""
    if isinstance(config.get("num_classes"), int) and config.get("architecture") == name:
        return config["num_classes"]
    net = _empty(Architecture(library, name, None, args))
    linear = [n for n, module in net.named_modules() if isinstance(module, nn.Linear)]
    named = (getattr(net, "pretrained_cfg", None) or {}).get("classifier")
    heads = [named] if isinstance(named, str) else linear[-1:]
    weight = tensors.get(f"{heads[0]}.weight") if heads else None
    return None if weight is None else int(weight.shape[0])
