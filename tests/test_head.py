from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import linear

from surgeon.edit import Edit
from surgeon.errors import IncompatibleError
from surgeon.head import Head, find_head
from surgeon.methods import DFR, FFW, GBA, GBAMask, Leace
from surgeon.subject import freeze
from surgeon.surgery import apply, prove

SIZE = (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "head", "kwargs"),
    [
        ("resnet18", "fc", {}),
        ("mobilenet_v3_small", "classifier.3", {}),
        ("vit_b_16", "heads.head", {"image_size": 32}),
        ("squeezenet1_1", "classifier.1", {}),
    ],
)
def test_head_of_torchvision_networks(name, head, kwargs):
    net = torchvision.models.get_model(name, weights=None, num_classes=3, **kwargs)
    side = kwargs.get("image_size", 64)
    assert find_head(freeze(net), (3, side, side)).modules == (head,)


class Ends(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        x = x.mean((2, 3))
        return {
            "softmax": lambda: self.fc(x).softmax(1),
            "twice": lambda: self.fc(self.fc(x)),
            "positions": lambda: self.fc(x[:, None].expand(-1, 4, -1)),
            "tuple": lambda: (self.fc(x),),
            "size": lambda: self.fc(x.reshape(5, 5)),
            "none": lambda: x,
        }[self.how]()


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("softmax", "last layer: expected one linear layer"),
        ("none", "last layer: expected one linear layer"),
        ("twice", "in 2 calls, expected one vector per image, once"),
        ("positions", r"input of shape \[1, 4, 3\]"),
        ("tuple", "returns a tuple"),
        ("size", r"does not run on one image of size \(3, 64, 64\).*--input-size"),
    ],
)
def test_a_network_that_ends_otherwise_is_refused(how, match):
    with pytest.raises(IncompatibleError, match=match):
        find_head(Ends(how), SIZE)


class Two(nn.Module):
    """Two heads on two tokens, averaged, as in DeiT."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 7), nn.Linear(3, 5)
        self.head, self.head_dist = nn.Linear(7, 2), nn.Linear(5, 2)

    def forward(self, x):
        x = x.mean((2, 3))
        return (self.head(self.first(x).relu()) + self.head_dist(self.second(x).tanh())) / 2


class Pixel(nn.Module):
    """A convolution of one pixel as head: after the pool, before it, or with a ReLU between."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.fc = how, nn.Conv2d(3, 7, 3), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        x = self.first(x).relu()
        if self.how == "after":
            return self.fc(x.mean((2, 3), keepdim=True)).flatten(1)
        x = self.fc(x)
        return (x.relu() if self.how == "relu" else x).mean((2, 3))


HEADS = {
    "two": (Two, ("head", "head_dist"), 12),
    "after": (lambda: Pixel("after"), ("fc",), 7),
    "before": (lambda: Pixel("before"), ("fc",), 7),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_other_shape_is_one_matrix(kind, pico):
    build, modules, width = HEADS[kind]
    subject = pico(build, 16)
    assert (subject.head.modules, subject.num_features, subject.num_classes) == (modules, width, 2)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    features, logits = subject.forward(x)
    own = subject.head_tensors
    weight, bias_term = subject.head.weight(own), subject.head.bias_term(own)
    torch.testing.assert_close(linear(features, weight, bias_term), logits)
    # Any other head fits in, and reads back.
    weight, bias_term = torch.randn(2, width), torch.randn(2)
    other = subject.with_tensors(subject.head.replaced(weight, bias_term, own))
    torch.testing.assert_close(other.forward(x)[1], linear(features, weight, bias_term))
    torch.testing.assert_close(subject.head.weight(other.head_tensors), weight)


@pytest.mark.parametrize("kind", HEADS)
def test_methods_work_on_a_head_of_other_shape(kind, pico, small, tmp_path):
    subject, data = pico(HEADS[kind][0], 16), small.data
    x = data.report.batch(torch.arange(len(data.report)))
    for method in (DFR(), Leace(), GBAMask(sparsity=0.5), FFW(epochs=1)):
        edit = method.fit(subject, data)
        assert prove(subject, edit, apply(subject, edit), x) < 1e-5
        edit.save(tmp_path / "edit.safetensors")
        again = Edit.load(tmp_path / "edit.safetensors")
        assert again.head == subject.head
        assert torch.equal(apply(subject, again).forward(x)[1], apply(subject, edit).forward(x)[1])
    assert not torch.equal(apply(subject, edit).forward(x)[1], subject.forward(x)[1])


def test_a_head_before_an_activation_is_left_alone(pico, small):
    subject, data = pico(lambda: Pixel("relu"), 16), small.data
    assert subject.head == Head(("fc",), linear=False)
    edit = FFW(epochs=1).fit(subject, data)
    assert edit.erasure is None
    assert set(edit.masks) == {"first.weight"}
    for method in (DFR(), Leace(), FFW(epochs=1, erase_head=True)):
        with pytest.raises(IncompatibleError, match=r"followed by an activation.*cannot be folded"):
            method.fit(subject, data)
    for method in (GBA(epochs=1), GBAMask()):
        with pytest.raises(IncompatibleError, match=f"{method.name} needs one that is linear"):
            method.fit(subject, data)
