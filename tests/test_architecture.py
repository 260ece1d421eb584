from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from surgeon.architecture import Architecture, differences, own_preprocessing, resolve_architecture
from surgeon.benchmarks.nets import SmallConvNet
from surgeon.errors import CheckpointError, IncompatibleError, OptionError

FACTORY = "surgeon.benchmarks.nets:SmallConvNet"


def state(library, name, **kwargs):
    with torch.device("meta"):
        return Architecture(library, name, None, kwargs).build().state_dict()


@pytest.mark.parametrize(
    ("library", "name", "kwargs"),
    [
        ("timm", "test_resnet", {}),
        ("timm", "test_vit", {"img_size": 64}),
        ("timm", "test_convnext", {}),
        ("timm", "test_efficientnet", {}),
        ("torchvision", "resnet18", {}),
        ("torchvision", "mobilenet_v3_small", {}),
    ],
)
def test_classes_come_from_the_head(library, name, kwargs):
    tensors = state(library, name, num_classes=7, **kwargs)
    found, note = resolve_architecture(tensors, {}, arch=f"{library}:{name}", model_args=kwargs)
    assert found == Architecture(library, name, 7, kwargs)
    assert f"{library}:{name}" in note
    with torch.device("meta"):
        assert differences(found.build(), tensors) == []


def test_config_names_it_and_options_go_over_it():
    config = {"architecture": "test_vit", "num_classes": 4, "model_args": {"img_size": 96}}
    tensors = state("timm", "test_vit", num_classes=4, img_size=96)
    found, note = resolve_architecture(tensors, config)
    assert found == Architecture("timm", "test_vit", 4, {"img_size": 96})
    assert "config.json" in note
    assert found.build().patch_embed.img_size == (96, 96)
    other, _ = resolve_architecture(tensors, config, model_args={"img_size": 64})
    assert other.model_args == {"img_size": 64}
    torchvision_config = {"architecture": "resnet18", "library": "torchvision", "num_classes": 3}
    found, _ = resolve_architecture(
        state("torchvision", "resnet18", num_classes=3), torchvision_config
    )
    assert found == Architecture("torchvision", "resnet18", 3)


def test_a_bare_name_takes_the_registry_that_fits():
    ours = state("timm", "resnet18", num_classes=5)
    theirs = state("torchvision", "resnet18", num_classes=5)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    found, note = resolve_architecture(ours, {}, arch="resnet18")
    assert found == Architecture("timm", "resnet18", 5)  # a tie
    assert "keys and shapes match" in note
    theirs = state("torchvision", "efficientnet_b0", num_classes=5)
    found, _ = resolve_architecture(theirs, {}, arch="efficientnet_b0")
    assert found == Architecture("torchvision", "efficientnet_b0", 5)
    ours = state("timm", "efficientnet_b0", num_classes=5)
    found, _ = resolve_architecture(ours, {}, arch="efficientnet_b0")
    assert found == Architecture("timm", "efficientnet_b0", 5)
    found, _ = resolve_architecture(state("torchvision", "alexnet"), {}, arch="alexnet")
    assert found.library == "torchvision"


def test_a_factory_is_imported_from_where_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\ndef tiny(width=3):\n    return nn.Linear(width, 2)\nvalue = 3\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    found, note = resolve_architecture({}, {}, factory="my_nets:tiny", model_args={"width": 5})
    assert found.build().in_features == 5
    assert "my_nets:tiny" in note
    for name, match in [
        ("my_nets", "expected package.module:function"),
        ("my_nets:", "expected package.module:function"),
        ("my_nets:none", "cannot be imported"),
        ("no_such_module:tiny", "cannot be imported"),
        ("my_nets:value", "is a int, expected a function"),
    ]:
        with pytest.raises(OptionError, match=match):
            Architecture("factory", name).build()
    with pytest.raises(IncompatibleError, match="returned a int"):
        Architecture("factory", "my_nets:wrong").build()
    with pytest.raises(IncompatibleError, match="cannot be built"):
        Architecture("factory", "my_nets:tiny", None, {"depth": 1}).build()
    assert isinstance(Architecture("factory", FACTORY, 2).build(), SmallConvNet)


def test_what_cannot_be_resolved_says_so():
    for kwargs, match in [
        ({"arch": "timm:no_such_net"}, "'no_such_net' is not a model of timm;?"),
        ({"arch": "no_such_net"}, "is not a model of timm or torchvision"),
        ({"arch": "keras:resnet"}, "found library 'keras'"),
        ({"arch": "timm:resnet18", "factory": FACTORY}, "found both"),
    ]:
        with pytest.raises(OptionError, match=match):
            resolve_architecture({}, {}, **kwargs)
    with pytest.raises(CheckpointError, match=r"mine\.pt: no config\.json.*--arch"):
        resolve_architecture({}, {}, where="mine.pt")
    config = {"library": "factory", "architecture": FACTORY}
    with pytest.raises(CheckpointError, match=f"pass --factory {FACTORY}"):
        resolve_architecture({}, config)


def test_differences_lists_all_three_kinds():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    tensors = {"0.weight": torch.ones(2, 4), "1.weight": torch.ones(1, 2), "2.bias": torch.ones(5)}
    assert differences(net, tensors) == [
        "missing 0.bias [2]",
        "unexpected 2.bias [5]",
        "0.weight: found [2, 4], expected [2, 3]",
    ]


def test_batch_counters_may_be_missing():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    tensors = {n: t for n, t in net.state_dict().items() if not n.endswith("tracked")}
    assert differences(net, tensors) == []
    del tensors["1.running_mean"]
    assert differences(net, tensors) == ["missing 1.running_mean [2]"]


def test_own_preprocessing():
    net = timm.create_model("test_vit", pretrained=False)
    found = own_preprocessing(Architecture("timm", "test_vit"), net)
    assert tuple(found["input_size"]) == (3, 160, 160)
    found = own_preprocessing(Architecture("torchvision", "resnet18"), nn.Identity())
    weights = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert found["input_size"] == (3, *weights.crop_size * 2)
    assert found["mean"] == tuple(weights.mean)
    assert found["crop_pct"] == 224 / 256
    assert own_preprocessing(Architecture("factory", "x:y"), nn.Identity()) == {}


def test_arguments_of_another_network_are_not_inherited():
    config = {"architecture": "test_vit", "num_classes": 2, "model_args": {"img_size": 64}}
    own, source = resolve_architecture({}, config)
    assert own.model_args == {"img_size": 64}
    assert "config.json" in source
    other, source = resolve_architecture({}, config, arch="timm:test_resnet")
    assert other.model_args == {}
    assert "--arch" in source
