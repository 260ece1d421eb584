"""Networks of the published protocols, for `--factory`; `registered_nets` names them to timm."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class BenchmarkNet(nn.Module, ABC):
    """A classifier with timm's names: features, mean pool where they are maps, one linear head.

    Args:
        head_name: Module name of the head.
        pretrained_cfg: Preprocessing under timm's keys.
    """

    def __init__(self, head_name: str, pretrained_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.head_name = head_name
        self.pretrained_cfg = {**pretrained_cfg, "classifier": head_name}

    @property
    def num_features(self) -> int:
        """Width of the head's input."""
        return self.get_classifier().in_features

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.get_classifier().out_features

    def get_classifier(self) -> nn.Linear:
        """Return the head."""
        head = self.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to `[n, D, h, w]` maps or `[n, D]` vectors."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to `[n, C]` logits, or to the head's input `[n, D]`."""
        pooled = x.mean((2, 3)) if x.dim() == 4 else x
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to `[n, C]` logits."""
        return self.forward_head(self.forward_features(x))


def _cfg(side: int, mean: Sequence[float], std: Sequence[float], first_conv: str) -> dict[str, Any]:
    """Return timm's keys for square images that are neither resized nor cropped."""
    return {
        "input_size": (3, side, side),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "first_conv": first_conv,
    }


_HALF = (0.5,) * 3
SMALL_CFG = _cfg(14, _HALF, _HALF, "features.0")
SIMPLE_CFG = _cfg(28, _HALF, _HALF, "features.0")
MLP_CFG = _cfg(28, (0.0,) * 3, (1.0,) * 3, "features.0")
# Of the widely shared CIFAR-10 checkpoints, and of the published protocols.
CIFAR_CFG = _cfg(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "conv1")
CIFAR_PROTOCOL_CFG = _cfg(32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "conv1")


class Stem(nn.Conv2d):
    """A convolution of images; on CUDA their channels are filled up with zeros.

    There, gradients of kernels of three channels take longer than all else in a small network.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.is_cuda:
            input, weight = filled_up(input), filled_up(weight)
        return super()._conv_forward(input, weight, bias)


def filled_up(x: Tensor) -> Tensor:
    """Add channels of zeros to `[n, C, H, W]`, up to a multiple of eight."""
    return pad(x, (0, 0, 0, 0, 0, -x.shape[1] % 8))


def _convolutions(kernel: int, *, pool_after: int | None) -> nn.Sequential:
    """Stack 3-16-32-64-128 with BatchNorm; ReLU, after the last Tanh; Kaiming-normal, fan out."""
    widths = (3, 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        conv = (nn.Conv2d if i else Stem)(before, after, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(after), nn.Tanh() if i == 3 else nn.ReLU(inplace=True)]
        if i == pool_after:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class SmallConvNet(BenchmarkNet):
    """Four 3 x 3 convolutions 3-16-32-64-128, each with BatchNorm; mean pool; Linear(128, 10).

    ReLU after the first three, Tanh after the fourth, max-pool after the second; Kaiming-normal
    (fan out) convolutions; 14 x 14 pixels.

    Source:
        The SimpleConvNet of ReBias and IRENE with 3 x 3 instead of 7 x 7 kernels and a max-pool.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__("fc", SMALL_CFG)
        self.features = _convolutions(3, pool_after=1)
        self.fc = nn.Linear(128, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to `[n, 128, H / 2, W / 2]`."""
        return self.features(x)


class SimpleConvNet(BenchmarkNet):
    """Four 7 x 7 convolutions 3-16-32-64-128, each with BatchNorm; mean pool; Linear(128, 10).

    ReLU after the first three, Tanh after the fourth, no pooling before the mean; Kaiming-normal
    (fan out) convolutions; 28 x 28 pixels; 531,210 parameters with ten classes.

    Source:
        Bahng and others, Learning de-biased representations with biased representations (ReBias),
        ICML 2020, with the Tanh of IRENE, VCBA and FFW, where ReBias has a ReLU.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__("fc", SIMPLE_CFG)
        self.features = _convolutions(7, pool_after=None)
        self.fc = nn.Linear(128, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to `[n, 128, H, W]`."""
        return self.features(x)


class Mlp100(BenchmarkNet):
    """Three hidden layers of 100 units with ReLU on 28 x 28 colour pixels; Linear(100, 10).

    Args:
        num_classes: Outputs.
        divide: Divide the input by 255 although it already lies in [0, 1].

    Source:
        Nam and others, Learning from failure (LfF), NeurIPS 2020. Their network divides by 255 what
        `ToTensor` already scaled; DebiAN, VCBA and FFW inherit that, and it shapes their numbers,
        so it is on by default.
    """

    def __init__(self, num_classes: int = 10, *, divide: bool = True) -> None:
        super().__init__("fc", MLP_CFG)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3 * 28 * 28, 100, 100, 100)):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(100, num_classes)
        self.divide = divide

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[n, 3, 28, 28]` images to `[n, 100]`."""
        return self.features(x.flatten(1) / (255 if self.divide else 1))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a shortcut.

    Where the size changes, the shortcut is a 1 x 1 convolution with BatchNorm (option B) if
    `projection`, else it takes every second pixel and pads the new channels with zeros, half before
    and half after (option A).
    """

    def __init__(self, before: int, after: int, stride: int, *, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.padding = stride, (after - before) // 2
        self.shortcut: nn.Module | None = None
        if projection and (stride != 1 or before != after):
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, before, H, W]` to `[n, after, H / stride, W / stride]`."""
        if self.shortcut is None:
            shortcut = x[:, :, :: self.stride, :: self.stride]
            shortcut = pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        else:
            shortcut = self.shortcut(x)
        x = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(BenchmarkNet):
    """A ResNet for 32 x 32 images: 3 x 3 stem of stride 1, no max-pool, mean pool, linear.

    Args:
        blocks: Blocks per stage.
        num_classes: Outputs.
        widths: Channels of each stage; every stage but the first halves the size.
        projection: Shortcuts of 1 x 1 convolutions where the size changes.

    Source:
        He and others, Deep residual learning for image recognition, CVPR 2016: section 4.2 for 20
        layers (3 blocks, 16-32-64), with the parameter names of the widely shared CIFAR-10
        checkpoints; ResNet-18 (2 blocks, 64-128-256-512, `projection`) with the stem customary for
        CIFAR.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        *,
        widths: tuple[int, ...] = (16, 32, 64),
        projection: bool = False,
    ) -> None:
        super().__init__("linear", CIFAR_CFG)
        self.conv1 = Stem(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = tuple(f"layer{i + 1}" for i in range(len(widths)))
        for i, name in enumerate(self.stages):
            before = widths[max(0, i - 1)]
            stage = [BasicBlock(before, widths[i], 2 if i else 1, projection=projection)]
            stage += [BasicBlock(widths[i], widths[i], 1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(*stage))
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to the maps of the last stage."""
        x = relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x


def small_conv_net() -> SmallConvNet:
    """Build the ten-class network."""
    return SmallConvNet()


def resnet20() -> CifarResNet:
    """Build the ten-class network of 20 layers."""
    return CifarResNet(3)


def resnet18() -> CifarResNet:
    """Build the ten-class network of 18 layers, 11 million parameters."""
    return CifarResNet(2, widths=(64, 128, 256, 512), projection=True)
