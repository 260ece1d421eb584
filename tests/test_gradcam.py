from __future__ import annotations

import importlib.util

import pytest
import timm
import torch
from torch import nn

import surgeon
from surgeon.errors import IncompatibleError, OptionError
from surgeon.gradcam import FeatureMap, find_feature_map, look
from tests.conftest import TinyNet, roughen, subject_of


class Brightest(nn.Module):
    """Class 0 is told by how bright the red channel is, class 1 by how dark."""

    def __init__(self):
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.seen.weight.copy_(torch.eye(3)[:, :, None, None])
            self.seen.bias.zero_()
            self.fc.weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))

    def forward(self, x):
        return self.fc(self.seen(x).mean((2, 3)))


def images(subject, n=3):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, *subject.preprocessing.input_size, generator=generator)


@pytest.mark.parametrize(
    ("name", "side", "module", "layout", "prefix"),
    [
        ("test_vit", 64, "blocks.4", "tokens", 1),  # the last block reads its class token
        ("test_vit2", 64, "blocks", "tokens", 1),
        ("test_resnet", 64, "layer3", "channels first", 0),
        ("test_nfnet", 64, "stages.2", "channels first", 0),  # later ones have a way around
        ("swin_s3_tiny_224", 224, "norm", "channels last", 0),
    ],
)
def test_the_map_is_the_last_one_that_tells_places_apart(name, side, module, layout, prefix):
    subject = subject_of(roughen(timm.create_model(name, num_classes=3)), side)
    where = find_feature_map(subject)
    assert (where.module, where.layout, where.prefix) == (module, layout, prefix)
    assert where.height == where.width


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", 64), ("test_resnet", 64), ("test_convnext", 64)]
)
def test_it_is_grad_cam(name, side):
    subject = subject_of(roughen(timm.create_model(name, num_classes=3)), side)
    where, x, classes = find_feature_map(subject), images(subject), torch.tensor([0, 1, 2])
    kept = []
    module = subject.net.get_submodule(where.module)
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = subject.net(x.requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[torch.arange(3), classes].sum(), kept)
    weights = where.to_map(gradient).mean((2, 3), keepdim=True)
    wanted = (weights * where.to_map(kept[0])).sum(1).clamp_min(0)
    largest = wanted.amax((1, 2), keepdim=True)
    assert int((largest > 0).sum()) > 0
    torch.testing.assert_close(
        look(subject, where, x, classes), wanted / largest.clamp_min(1e-30), rtol=1e-4, atol=1e-5
    )


def test_a_place_that_speaks_for_the_class_is_bright_and_no_other():
    subject, x = subject_of(Brightest(), 8), torch.zeros(2, 3, 8, 8)
    x[0, 0, 2, 5], x[1, 0, 2, 5] = 1, -1
    heat = look(subject, find_feature_map(subject), x, torch.tensor([0, 1]))
    expected = torch.zeros(8, 8)
    expected[2, 5] = 1
    assert torch.equal(heat, torch.stack([expected, expected]))
    # Asked for the other class, nothing speaks for it.
    assert not look(subject, find_feature_map(subject), x, torch.tensor([1, 0])).any()


@pytest.mark.parametrize(
    "where",
    [
        FeatureMap("", "channels first", 2, 3),
        FeatureMap("", "channels last", 2, 3),
        FeatureMap("", "tokens", 2, 3, 2),
    ],
    ids=lambda where: where.layout,
)
def test_a_map_goes_back_where_it_came_from(where):
    shape = {"channels first": (4, 5, 2, 3), "channels last": (4, 2, 3, 5), "tokens": (4, 8, 5)}
    output = torch.randn(shape[where.layout])
    assert where.to_map(output).shape == (4, 5, 2, 3)
    assert torch.equal(where.from_map(where.to_map(output), output), output)


def test_looking_leaves_the_network_alone():
    subject = subject_of(roughen(timm.create_model("test_vit", num_classes=3)), 64)
    x, before = images(subject), subject.fingerprint()
    logits = subject.forward(x)[1]
    look(subject, find_feature_map(subject), x, torch.tensor([0, 1, 2]))
    assert subject.fingerprint() == before
    assert torch.equal(subject.forward(x)[1], logits)
    assert not any(module._forward_hooks for module in subject.net.modules())
    assert not any(value.requires_grad for value in subject.net.parameters())


def test_a_network_without_places_is_refused_before_anything_is_fitted(toy, monkeypatch):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 8), nn.ReLU(), nn.Linear(8, 2))
    monkeypatch.setattr(surgeon.DFR, "fit", lambda *_, **__: pytest.fail("it was fitted"))
    with pytest.raises(IncompatibleError, match=r"no layer keeps the rows .* without --explain"):
        surgeon.operate(subject_of(flat, 12), toy.data, surgeon.DFR(), explain=True)


def test_without_captum_it_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "captum" else found(name)
    )
    with pytest.raises(OptionError, match=r"--explain: needs captum; pip install .*\[explain\]"):
        find_feature_map(subject_of(TinyNet(), 12))
