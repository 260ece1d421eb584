"""A bare state dict finds the network it is of, its twins, or what comes nearest."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from surgeon import identification
from surgeon.errors import CheckpointError
from surgeon.identification import Match, all_names, identify, make_signatures, write_index
from surgeon.loading import load

NAMES = ("timm:test_resnet", "timm:test_vit", "timm:resnet18", "torchvision:resnet18")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A cache with four networks, in place of what ships."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identification, "_SHIPPED", "nothing")
    monkeypatch.setattr(identification, "all_names", lambda: NAMES)
    write_index(identification._cache(), make_signatures(NAMES))


def tensors(name, classes=5):
    library, _, own = name.partition(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    with torch.device("meta"):
        return make(own, num_classes=classes).state_dict()


def test_the_number_of_classes_does_not_matter(index):
    for classes in (2, 1000):
        found = identify(tensors("timm:test_vit", classes))
        assert found == Match(("timm:test_vit",), (), 4)


def test_twins_are_all_named(index):
    twins = ("timm:resnet18", "torchvision:resnet18")
    assert identify(tensors("torchvision:resnet18")).exact == twins


def test_other_shapes_are_no_match(index):
    changed = tensors("timm:resnet18")
    changed["conv1.weight"] = torch.empty(64, 1, 7, 7, device="meta")
    found = identify(changed)
    assert found.exact == ()
    assert found.nearest[:2] == ("timm:resnet18", "torchvision:resnet18")
    renamed = {f"net.{name}": value for name, value in changed.items()}
    assert identify(renamed).nearest == ()


@pytest.mark.parametrize("damage", ["version", "bytes"])
def test_an_index_that_does_not_serve_is_made_anew(index, damage, monkeypatch, capsys):
    made = []
    make = identification.make_signatures
    monkeypatch.setattr(
        identification, "make_signatures", lambda names: made.append(1) or make(names)
    )
    path = identification._cache()
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
        monkeypatch.setattr(identification, "_versions", lambda: {"timm": "9", "torchvision": "9"})
    for _ in range(2):
        assert identify(tensors("timm:test_vit")).exact == ("timm:test_vit",)
    assert made == [1]
    assert "networks of timm and torchvision" in capsys.readouterr().err


def test_a_bare_file_loads(index, tmp_path):
    with torch.random.fork_rng(devices=[]):
        net = timm.create_model("test_resnet", num_classes=3)
    path = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), path)
    subject = load(path)
    assert str(subject.architecture) == "timm:test_resnet"
    assert subject.num_classes == 3
    assert "the one of 4 networks that fits" in subject.notes[0]
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    with pytest.raises(CheckpointError, match="fit 2 networks alike; pass --arch") as caught:
        load(path)
    assert caught.value.details == ("timm:resnet18", "torchvision:resnet18")
    most = timm.create_model("resnet18").state_dict()
    most.pop("fc.bias")
    save_file(most, path)
    with pytest.raises(CheckpointError, match=r"fit none of 4 networks.*; nearest:") as caught:
        load(path)
    assert "timm:resnet18" in caught.value.details


def test_networks_that_cannot_be_built_are_left_out():
    assert make_signatures(["timm:no-such-network"]) == {}


@pytest.mark.slow
def test_what_ships_names_sixty_networks_or_their_twins():
    shipped = identification._read_index()
    if shipped is None:
        pytest.skip("what ships is of other versions of timm and torchvision")
    assert set(shipped) <= set(all_names())
    assert len(shipped) > 0.95 * len(all_names())
    names = sorted(name for name in shipped if "test_" in name or "resnet" in name)[:60]
    for name in names:
        found = identify(tensors(name))
        assert name in found.exact
        assert len(found.exact) < 40
