"""Networks out of a small grammar, with units switched off in every way there is."""

from __future__ import annotations

import random

import torch
from torch import nn

SIDE = 8
_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Identity)


class Residual(nn.Module):
    """A branch beside the identity."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class Concat(nn.Module):
    """Branches side by side."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class SqueezeExcite(nn.Module):
    """Channels scaled by what all channels say."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        scale = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * self.expand(scale).sigmoid()


class Classifier(nn.Module):
    """Stages, mean pool, two linear layers."""

    def __init__(self, stages, channels, hidden):
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.hidden, self.fc = nn.Linear(channels, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.fc(self.hidden(self.stages(x).mean((2, 3))).relu())


def draw_net(draw: random.Random) -> nn.Module:
    """Draw a network and switch units off; float64, eval."""
    stages, channels = [*_conv(draw, 3, 8)], 8
    for _ in range(draw.randint(1, 3)):
        stage, channels = _stage(draw, channels)
        stages += stage
    net = Classifier(stages, channels, draw.choice([4, 7]))
    torch.manual_seed(draw.getrandbits(32))
    for name, value in net.state_dict().items():
        if value.dim() == 1:
            low = 0.5 if name.endswith("var") else -0.5
            value.uniform_(low, 1.5)
    net = net.eval().double().requires_grad_(False)
    switch_off_(net, draw)
    return net


def switch_off_(net: nn.Module, draw: random.Random) -> None:
    """Zero rows, columns, scales and shifts of units drawn at random."""
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if weight is None or module is net.fc:
            continue
        off = torch.tensor([draw.random() < 0.4 for _ in range(len(weight))])
        how = draw.choice(["unit", "weights", "columns", "nothing"])
        if how == "columns" and weight.dim() > 1:
            weight[:, torch.tensor([draw.random() < 0.3 for _ in range(weight.shape[1])])] = 0
        elif how in ("unit", "weights"):
            weight[off] = 0
            if how == "unit" and module.bias is not None:
                module.bias[off] = 0


def _conv(draw, before, after, groups=1):
    """Return a convolution that keeps the side."""
    size = draw.choice([1, 3])
    bias = draw.random() < 0.5
    layers = [nn.Conv2d(before, after, size, padding=size // 2, groups=groups, bias=bias)]
    layers += [nn.BatchNorm2d(after)] if draw.random() < 0.6 else []
    return [*layers, draw.choice(_ACTIVATIONS)()]


def _stage(draw, channels):
    kind = draw.choice(["conv", "depthwise", "grouped", "residual", "concat", "se", "pool"])
    if kind == "conv":
        return _conv(draw, channels, 12), 12
    if kind == "depthwise":
        return _conv(draw, channels, channels, groups=channels), channels
    if kind == "grouped":
        return _conv(draw, channels, channels, groups=4), channels
    if kind == "residual":
        inner = [*_conv(draw, channels, 10), *_conv(draw, 10, channels)]
        return [Residual(nn.Sequential(*inner))], channels
    if kind == "concat":
        branches = [nn.Sequential(*_conv(draw, channels, n)) for n in (4, 8)]
        return [Concat(*branches, nn.Identity())], channels + 12
    if kind == "se":
        return [SqueezeExcite(channels, 4)], channels
    return [draw.choice([nn.MaxPool2d, nn.AvgPool2d])(3, stride=1, padding=1)], channels
