"""Networks of the published protocols, at a scale for two CPU cores; for `--factory`."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class SmallConvNet(nn.Module):
    """Four 3 x 3 convolutions 3-16-32-64-128, each with BatchNorm; mean pool; Linear(128, 10).

    ReLU after the first three, Tanh after the fourth, max-pool after the second; Kaiming-normal
    (fan out) convolutions.

    Source:
        The SimpleConvNet of ReBias and IRENE with 3 x 3 instead of 7 x 7 kernels and a max-pool.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            conv = nn.Conv2d(before, after, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(after), nn.Tanh() if i == 3 else nn.ReLU(inplace=True)]
            if i == 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], num_classes)
        self.pretrained_cfg = {
            "input_size": (3, 14, 14),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to `[n, C]` logits."""
        return self.fc(self.features(x).mean((2, 3)))


def small_conv_net() -> SmallConvNet:
    """Build the ten-class network."""
    return SmallConvNet()


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a shortcut without weights.

    Where the size changes, the shortcut takes every second pixel and pads the new channels with
    zeros, half before and half after (option A).
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.padding = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, before, H, W]` to `[n, after, H / stride, W / stride]`."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        x = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """The ResNet for 32 x 32 images: three stages of 16, 32 and 64 channels, mean pool, linear.

    Source:
        He and others, Deep residual learning for image recognition, CVPR 2016, section 4.2, with
        the parameter names of the widely shared CIFAR-10 checkpoints.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, 1)
        self.layer2 = _stage(blocks, 16, 32, 2)
        self.layer3 = _stage(blocks, 32, 64, 2)
        self.linear = nn.Linear(64, num_classes)
        self.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, 3, H, W]` images to `[n, C]` logits."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(blocks: int, before: int, after: int, stride: int) -> nn.Sequential:
    first = BasicBlock(before, after, stride)
    return nn.Sequential(first, *(BasicBlock(after, after, 1) for _ in range(blocks - 1)))


def resnet20() -> CifarResNet:
    """Build the ten-class network of 20 layers."""
    return CifarResNet(3)
