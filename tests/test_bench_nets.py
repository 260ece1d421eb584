"""The networks of the published protocols, by hand and through timm."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d

from surgeon.benchmarks import nets
from surgeon.loading import load
from surgeon.sites import unit_sites, weight_sites

# timm name to parameters with ten classes, width of the head's input, side, mean of channel 1.
KNOWN = {
    "surgeon_small_conv_net": (99_210, 128, 14, 0.5),
    "surgeon_simple_conv_net": (531_210, 128, 28, 0.5),
    "surgeon_mlp100": (256_510, 100, 28, 0.0),
    "surgeon_cifar_resnet20": (269_722, 64, 32, 0.4914),
    "surgeon_cifar_resnet18": (11_173_962, 512, 32, 0.4914),
}


@pytest.mark.parametrize("name", KNOWN)
def test_timm_builds_it_as_its_own(name):
    parameters, width, side, mean = KNOWN[name]
    net = timm.create_model(name, num_classes=10).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert (net.num_features, net.num_classes) == (width, 10)
    cfg = net.pretrained_cfg
    assert (cfg["architecture"], cfg["input_size"], cfg["mean"][0]) == (name, (3, side, side), mean)
    assert net.get_submodule(cfg["classifier"]) is net.get_classifier()
    assert isinstance(net.get_submodule(cfg["first_conv"]), nn.Conv2d | nn.Linear)
    x = torch.randn(2, 3, side, side)
    features = net.forward_features(x)
    bottleneck = net.forward_head(features, pre_logits=True)
    assert bottleneck.shape == (2, width)
    assert torch.equal(net.get_classifier()(bottleneck), net(x))
    assert timm.create_model(name, num_classes=3).num_classes == 3


@pytest.mark.parametrize("name", KNOWN)
def test_a_checkpoint_is_loaded_and_has_its_sites(name, tmp_path):
    net = timm.create_model(name, num_classes=10)
    save_file(net.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    subject = load(tmp_path / "model.safetensors", arch=f"timm:{name}")
    assert subject.num_classes == 10
    assert subject.num_features == KNOWN[name][1]
    assert subject.preprocessing.input_size == (3, KNOWN[name][2], KNOWN[name][2])
    assert subject.preprocessing.crop_pct == 1
    assert weight_sites(subject)
    assert unit_sites(subject)


def test_channels_that_are_filled_up_change_no_convolution():
    images, kernel = torch.randn(2, 3, 9, 9), torch.randn(5, 3, 7, 7)
    more = nets.filled_up(images), nets.filled_up(kernel)
    assert [x.shape[1] for x in more] == [8, 8]
    assert nets.filled_up(more[0]).shape[1] == 8
    torch.testing.assert_close(conv2d(*more, padding=3), conv2d(images, kernel, padding=3))


def test_plain_timm_reads_a_folder_of_ours(tmp_path):
    net = timm.create_model("surgeon_mlp100", num_classes=4, divide=False).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    config = {"architecture": "surgeon_mlp100", "num_classes": 4, "model_args": {"divide": False}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {}}))
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(read(x), net(x))


@pytest.mark.parametrize(
    ("factory", "side"),
    [("small_conv_net", 14), ("SimpleConvNet", 28), ("Mlp100", 28), ("resnet20", 32)],
)
def test_a_factory_carries_its_preprocessing(factory, side, tmp_path):
    net = getattr(nets, factory)()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    subject = load(tmp_path / "net.safetensors", factory=f"surgeon.benchmarks.nets:{factory}")
    assert subject.preprocessing.input_size == (3, side, side)
    assert str(subject.head) == net.head_name


def test_simple_conv_net_keeps_its_size_and_ends_in_tanh():
    net = nets.SimpleConvNet()
    assert net.forward_features(torch.randn(1, 3, 28, 28)).shape == (1, 128, 28, 28)
    last = [type(module) for module in net.features][-3:]
    assert last == [nn.Conv2d, nn.BatchNorm2d, nn.Tanh]
    assert not [m for m in net.modules() if isinstance(m, nn.MaxPool2d | nn.Dropout)]
    conv = net.features[9]
    assert isinstance(conv, nn.Conv2d)
    # Kaiming-normal by fan out: variance 2 / (128 * 49); by fan in it would be twice that.
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (128 * 49)) ** 0.5, rel=0.02)


def test_the_perceptron_divides_by_255_unless_told_not_to():
    divided = nets.Mlp100().eval()
    plain = nets.Mlp100(divide=False).eval()
    plain.load_state_dict(divided.state_dict())
    x = torch.rand(2, 3, 28, 28)
    assert torch.equal(divided(x), plain(x / 255))
    assert not torch.allclose(divided(x), plain(x))


def test_resnet18_has_the_stem_and_the_shortcuts_of_cifar():
    net = nets.resnet18().eval()
    assert net.conv1.stride == (1, 1)
    assert net.conv1.kernel_size == (3, 3)
    projections = [name for name, m in net.named_modules() if name.endswith("shortcut.0")]
    assert projections == [f"layer{i}.0.shortcut.0" for i in (2, 3, 4)]
    assert net.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 512, 4, 4)
    assert not [name for name in nets.resnet20().state_dict() if "shortcut" in name]
