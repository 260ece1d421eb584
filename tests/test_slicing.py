"""Cutting out what is switched off: what goes, what stays and why, and that no logit changes."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon.checkpoint import read_safetensors
from surgeon.errors import CheckpointError, OptionError
from surgeon.export import export
from surgeon.formats import Formats
from surgeon.load_sliced import shrink_
from surgeon.loading import load
from surgeon.methods.base import new_edit
from surgeon.sites import unit_sites
from surgeon.slicing.cut import CODE, LEAK, SHAPE, SHARED, cut
from surgeon.slicing.plan import choose, plan
from surgeon.slicing.trace import trace
from surgeon.surgery import apply
from tests.conftest import roughen, subject_of
from tests.random_nets import SIDE, draw_net
from tests.test_export import files, random_edit, save


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_random_networks_agree_with_what_is_left_of_them():
    draw, x = random.Random(0), torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    smaller = constants = 0
    for _ in range(300):
        net = draw_net(draw)
        flow = trace(net, x[:1])
        made = plan(net, flow, choose(net, flow)[0])
        cut_net = shrink_(copy.deepcopy(net), made.tensors, made.attributes)
        wanted = net(x)
        torch.testing.assert_close(cut_net(x), wanted, rtol=1e-9, atol=1e-9)
        smaller += size(cut_net) < 0.95 * size(net)
        constants += any(
            name.endswith("bias") and name not in net.state_dict() for name in made.tensors
        )
    assert smaller > 200
    assert constants > 20


def off(n, *units):
    found = torch.zeros(n, dtype=torch.bool)
    found[list(units)] = True
    return found


def close_(module, *units):
    with torch.no_grad():
        for value in (module.weight, module.bias):
            if value is not None:
                value[list(units)] = 0


class Block(nn.Module):
    """A stem, two convolutions on a branch beside the identity, a head."""

    def __init__(self, *, groups=1, affine=True, reads=3):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 1, groups=groups, bias=False)
        self.inner_norm = nn.BatchNorm2d(8)
        self.outer = nn.Conv2d(8, 8, reads, padding=reads // 2, bias=False)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        inner = self.inner_norm(self.inner(x)).relu()
        return self.fc((x + self.outer(inner)).mean((2, 3)))


class Fixed(nn.Module):
    """Its code names numbers of a layer's channels between two layers."""

    def __init__(self, arrange):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.fc, self.arrange = nn.Linear(6, 2), arrange

    def forward(self, x):
        return self.fc(self.second(self.arrange(self.first(x).relu())).mean((2, 3)))


def reshaped(x):
    """Name the width."""
    return x.reshape(len(x), 8, -1, 1)


def swapped(x):
    """Name places: with fewer channels it runs, and computes something else."""
    return torch.cat([x[:, 4:], x[:, :4]], dim=1)


class Grouped(nn.Module):
    """A convolution, one of groups behind it, a head."""

    def __init__(self, groups=8):
        super().__init__()
        self.wide, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, groups=groups, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.wide(x)).relu()
        return self.fc(self.deep_norm(self.deep(x)).relu().mean((2, 3)))


def cut_of(net, closed, **settings):
    """Close units of modules, at the module given, and cut."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = roughen(net())
    for where, units in closed.values():
        close_(net.get_submodule(where), *units)
    folded = subject_of(net, 8)
    switched = {name: off(8, *units) for name, (_, units) in closed.items()}
    return folded, cut(folded, switched, **settings)


def test_a_unit_goes_with_everything_it_feeds():
    folded, made = cut_of(Block, {"inner": ("inner_norm", (1, 4, 5))})
    assert made.units == {"inner": (8, 5)}
    assert made.kept == {}
    net = made.subject.net
    assert (net.inner.out_channels, net.inner_norm.num_features, net.outer.in_channels) == (5, 5, 5)
    assert net.outer.weight.shape == (8, 5, 3, 3)
    assert folded.net.inner.out_channels == 8
    assert size(net) == size(folded.net) - 3 * (8 + 2 + 8 * 9)


@pytest.mark.parametrize(
    ("net", "closed", "reason"),
    [
        (Block, {"stem": ("norm", (0, 3))}, SHARED),
        # The normalisation behind it makes a constant, which a padding cuts off at the border.
        (Block, {"inner": ("inner", (3, 6))}, LEAK),
        (lambda: Block(groups=2), {"inner": ("inner_norm", (0, 3))}, SHAPE),
        (lambda: Fixed(reshaped), {"first": ("first", (0, 3))}, CODE),
        (lambda: Fixed(swapped), {"first": ("first", (0, 3))}, CODE),
    ],
)
def test_what_cannot_go_stays_and_says_why(net, closed, reason):
    _, made = cut_of(net, closed)
    ((name, _),) = closed.items()
    assert made.kept == {name: {reason: 2}}
    assert name not in made.units


def test_a_constant_moves_into_a_new_additive_term():
    folded, made = cut_of(lambda: Block(reads=1), {"inner": ("inner", (3, 6))})
    assert made.units == {"inner": (8, 6)}
    added = made.subject.net.outer.bias
    assert folded.net.outer.bias is None
    assert added.abs().max() > 1e-3
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(made.subject.forward(x)[1], folded.forward(x)[1])


def test_a_channel_goes_through_a_depthwise_layer_as_one():
    _, made = cut_of(Grouped, {"deep": ("deep_norm", (1, 2, 6))})
    assert made.units == {"wide": (8, 5), "deep": (8, 5)}
    assert made.subject.net.deep.groups == 5


def test_groups_of_a_convolution_stay_of_one_size():
    _, made = cut_of(lambda: Block(groups=2), {"inner": ("inner_norm", (0, 3, 4, 5, 6))})
    assert made.units == {"inner": (8, 4)}
    assert made.layer("inner", 8) == {"units_left": 4, "off_but_left": f"1 {SHAPE}"}
    assert made.subject.net.inner.groups == 2
    assert made.kept == {"inner": {SHAPE: 1}}


def test_the_width_is_rounded_and_never_zero():
    _, made = cut_of(Block, {"inner": ("inner_norm", range(5))}, round_to=4)
    assert made.units == {"inner": (8, 4)}
    assert made.kept == {"inner": {SHAPE: 1}}
    _, made = cut_of(Block, {"inner": ("inner_norm", range(8))})
    assert made.units == {"inner": (8, 1)}


def test_nothing_off_leaves_the_network_as_it_is(pico):
    subject = pico("test_efficientnet", 64)
    made = cut(subject, {})
    assert made.units == {}
    assert made.layer("conv_stem", 24) == {"units_left": 24, "off_but_left": ""}
    assert made.subject.attributes == {}
    assert made.subject.fingerprint() == subject.fingerprint()


@pytest.mark.parametrize(
    ("net", "wanted", "unwanted"),
    [
        ("test_vit", {"blocks.0.attn.qkv": 2, "blocks.0.mlp.fc1": 192}, "blocks.0.attn.proj"),
        ("test_resnet", {"layer1.0.conv1": 32}, "layer1.0.conv2"),
        ("test_convnext", {"stages.0.blocks.0.mlp.fc1": 96}, "stem.0"),
        (lambda: Grouped(groups=4), {"deep": 4}, "fc"),
    ],
)
def test_gates_sit_where_a_unit_can_be_cut(net, wanted, unwanted, pico):
    sites = {site.name: site.shape[0] for site in unit_sites(pico(net, 64))}
    assert wanted.items() <= sites.items()
    assert unwanted not in sites


@pytest.fixture
def vit(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("test_vit", pretrained=False, num_classes=3, img_size=64)
    return save(tmp_path / "vit", net, "test_vit", 64, model_args={"img_size": 64})


_ALONE = """
import sys
sys.modules["surgeon"] = None
sys.path.insert(0, sys.argv[1])
import torch
from load_sliced import load
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
with torch.no_grad():
    save_file({"logits": load()(load_file(sys.argv[2])["x"])}, sys.argv[2])
"""


def test_round_trip(vit, tmp_path):
    subject, x = load(vit), torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    edit = random_edit(subject, "units")
    out = export(subject, edit, tmp_path / "out", images=x, formats=Formats(slice=True, full=True))
    assert {"full", "load_sliced.py", "model.safetensors"} <= set(files(out))
    again, folded = load(out), apply(subject, edit)
    assert size(again.net) < 0.9 * size(folded.net)
    heads = [block.attn.num_heads for block in again.net.blocks]
    assert min(heads) == 1
    torch.testing.assert_close(again.forward(x)[1], folded.forward(x)[1], rtol=1e-4, atol=1e-5)
    save_file({"x": x}, tmp_path / "x")
    subprocess.run([sys.executable, "-c", _ALONE, str(out), str(tmp_path / "x")], check=True)
    logits = load_file(out / "report_logits.safetensors")["logits"]
    assert torch.equal(load_file(tmp_path / "x")["logits"], logits)
    plain = timm.create_model(f"local-dir:{out / 'full'}", pretrained=True).eval()
    assert torch.equal(plain(x), folded.net.to(memory_format=torch.contiguous_format)(x))
    assert "load_sliced" in (out / "README.md").read_text()


def test_a_sliced_network_is_operated_on_again(vit, tmp_path):
    subject = load(vit)
    first = export(
        subject, random_edit(subject, "units"), tmp_path / "first", formats=Formats(slice=True)
    )
    small = load(first)
    assert small.attributes
    second = export(small, new_edit(small, "none"), tmp_path / "second")
    assert load(second).fingerprint() == small.fingerprint()
    third = export(
        small, random_edit(small, "units"), tmp_path / "third", formats=Formats(slice=True)
    )
    assert size(load(third).net) < size(small.net)


def test_a_sliced_file_without_its_record_is_refused(vit, tmp_path):
    subject = load(vit)
    edit = random_edit(subject, "units")
    out = export(subject, edit, tmp_path / "out", formats=Formats(slice=True))
    record = json.loads((out / "surgeon.json").read_text())
    (out / "surgeon.json").unlink()
    with pytest.raises(CheckpointError, match=r"was sliced.*No such file"):
        load(out)
    for fault in ({"blocks.0.attn": {"num_heads": "two"}}, {"nowhere": {"num_heads": 1}}):
        wrong = {**record, "slice": {"attributes": fault}}
        (out / "surgeon.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"keep surgeon\.json and model"):
            load(out)
    (out / "surgeon.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"was sliced.*cannot be read"):
        load(out)


@pytest.mark.parametrize("settings", [{"full": True}, {"round_to": 8}, {"round_to": 0}])
def test_shapes_without_slicing_are_refused(settings):
    with pytest.raises(OptionError, match=r"--full|--round-to"):
        Formats(**settings)


def test_the_header_says_that_a_file_was_sliced(vit, tmp_path):
    subject = load(vit)
    edit = random_edit(subject, "units")
    out = export(subject, edit, tmp_path / "out", formats=Formats(slice=True, full=True))
    assert read_safetensors(out / "model.safetensors")[1]["surgeon.sliced"] == "true"
    assert "surgeon.sliced" not in read_safetensors(out / "full" / "model.safetensors")[1]
