"""Small networks with all kinds of layers, for tests of gates and surgery."""

from __future__ import annotations

from torchvision.models import VisionTransformer

from surgeon.benchmarks.nets import SmallConvNet

# Name to the arguments of the fixture `pico`: a timm name or a function, side, model arguments.
NETS = {
    "test_resnet": ("test_resnet", 64, {}),
    "test_vit": ("test_vit", 64, {"img_size": 64}),
    "test_convnext": ("test_convnext", 64, {}),
    "test_efficientnet": ("test_efficientnet", 64, {}),
    "small_conv_net": (SmallConvNet, 14, {}),
    "attention": (lambda: VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3), 16, {}),
}
