"""The networks under the names that `timm.create_model` knows once `surgeon.benchmarks` is in."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from surgeon.benchmarks.nets import (
    CIFAR_PROTOCOL_CFG,
    MLP_CFG,
    SIMPLE_CFG,
    SMALL_CFG,
    CifarResNet,
    Mlp100,
    SimpleConvNet,
    SmallConvNet,
)

# timm reads this name when a function of this module is registered.
default_cfgs = generate_default_cfgs(
    {
        name: {"num_classes": 10, "classifier": head, **cfg}
        for name, head, cfg in (
            ("surgeon_small_conv_net", "fc", SMALL_CFG),
            ("surgeon_simple_conv_net", "fc", SIMPLE_CFG),
            ("surgeon_mlp100", "fc", MLP_CFG),
            ("surgeon_cifar_resnet20", "linear", CIFAR_PROTOCOL_CFG),
            ("surgeon_cifar_resnet18", "linear", CIFAR_PROTOCOL_CFG),
        )
    }
)


def _build(net: type[nn.Module], name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build as timm builds; the networks take three channels and pool in one way."""
    ignored: Any = ("in_chans", "global_pool")  # annotated too narrowly
    return build_model_with_cfg(net, name, pretrained, kwargs_filter=ignored, **kwargs)


@register_model
def surgeon_small_conv_net(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build `SmallConvNet` for timm."""
    return _build(SmallConvNet, "surgeon_small_conv_net", pretrained, **kwargs)


@register_model
def surgeon_simple_conv_net(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build `SimpleConvNet` for timm."""
    return _build(SimpleConvNet, "surgeon_simple_conv_net", pretrained, **kwargs)


@register_model
def surgeon_mlp100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build `Mlp100` for timm."""
    return _build(Mlp100, "surgeon_mlp100", pretrained, **kwargs)


@register_model
def surgeon_cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ResNet-20 for timm."""
    return _build(CifarResNet, "surgeon_cifar_resnet20", pretrained, blocks=3, **kwargs)


@register_model
def surgeon_cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ResNet-18 for timm."""
    kwargs = {"blocks": 2, "widths": (64, 128, 256, 512), "projection": True, **kwargs}
    return _build(CifarResNet, "surgeon_cifar_resnet18", pretrained, **kwargs)
