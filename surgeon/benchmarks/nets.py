"""Networks of the published protocols, at a scale for two CPU cores; for `--factory`."""

from __future__ import annotations

import itertools

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Four 3 x 3 convolutions 3-16-32-64-128, each with BatchNorm; mean pool; Linear(128, 10).

    ReLU after the first three, Tanh after the fourth, max-pool after the second.

    Source:
        The SimpleConvNet of ReBias and IRENE with 3 x 3 instead of 7 x 7 kernels and a max-pool.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            conv = nn.Conv2d(before, after, 3, padding=1)
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
