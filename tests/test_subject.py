from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import linear

from surgeon import architecture
from surgeon.errors import CheckpointError, OptionError
from surgeon.identification import Match
from surgeon.loading import load
from surgeon.subject import Subject, find_device

SIZE = (3, 64, 64)


@pytest.fixture
def folder(tmp_path):
    net = timm.create_model("test_vit", pretrained=False, num_classes=3, img_size=64)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": 3,
        "model_args": {"img_size": 64},
        "label_names": ["a", "b", "c"],
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1] * 3, "std": [0.2] * 3},
        "owner": "me",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "head", "kwargs"),
    [
        ("test_resnet", "fc", {}),
        ("test_vit", "head", {"img_size": 64}),
        ("test_convnext", "head.fc", {}),
        ("test_efficientnet", "classifier", {}),
        ("resnet18", "fc", {}),
        ("mobilenetv3_small_050", "classifier", {}),
    ],
)
def test_bottleneck_is_that_of_timm(name, head, kwargs, pico):
    subject = pico(name, 64, **kwargs)
    assert str(subject.head) == head
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = subject.forward(x)
        net = subject.net
        expected = net.forward_head(net.forward_features(x), pre_logits=True)
        assert torch.equal(features, expected)
        assert torch.equal(logits, net(x))
        weight, bias_term = (
            part(subject.head_tensors) for part in (subject.head.weight, subject.head.bias_term)
        )
        assert torch.equal(logits, linear(features, weight, bias_term))
    assert features.shape == (2, subject.num_features)
    assert subject.num_classes == 3


def test_load_freezes_and_reads_the_config(folder):
    subject = load(folder)
    assert isinstance(subject, Subject)
    assert str(subject.architecture) == "timm:test_vit"
    assert subject.architecture.num_classes == 3
    assert subject.label_names == ("a", "b", "c")
    assert subject.preprocessing.input_size == SIZE
    assert subject.preprocessing.mean == (0.1,) * 3
    assert subject.config["owner"] == "me"
    assert not subject.net.training
    assert not any(p.requires_grad for p in subject.net.parameters())
    other = load(folder / "model.safetensors", preprocessing={"mean": (0.3,) * 3, "std": None})
    assert other.preprocessing.mean == (0.3,) * 3
    assert other.preprocessing.std == (0.2,) * 3
    assert other.sha256 == subject.sha256
    assert other.fingerprint() == subject.fingerprint()


def test_every_key_that_does_not_fit_is_listed(folder):
    with pytest.raises(CheckpointError, match=r"1 keys do not fit(.|\n)*pos_embed: found"):
        load(folder, model_kwargs={"img_size": 96})
    with pytest.raises(CheckpointError, match=r"(missing(.|\n)*unexpected)|\+ \d+ more"):
        load(folder, arch="timm:vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("label_names", ["a", "b"], "found 2 label_names, the head has 3"),
        ("architecture", None, "no config.json with an 'architecture'"),
    ],
)
def test_a_wrong_config_is_refused(folder, key, value, match, monkeypatch):
    monkeypatch.setattr(architecture, "identify", lambda _: Match((), (), 0))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=match):
        load(folder)


def test_label_names_by_number(folder):
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = {"0": "x", "2": "z"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).label_names == ("x", "1", "z")


def test_a_checkpoint_without_batch_counters_loads(tmp_path):
    net = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    old = {n: t for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.th")
    subject = load(tmp_path / "old.th", arch="timm:test_resnet")
    assert set(subject.tensors()) == set(net.state_dict())
    assert all(torch.equal(subject.tensors()[n], t) for n, t in old.items())


def test_a_factory_needs_preprocessing(tmp_path):
    (tmp_path / "bare_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.mean((2, 3)))\n"
    )
    save_file({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, tmp_path / "n.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="pass --input-size --mean --std"):
            load(tmp_path / "n.safetensors", factory="bare_net:Net")
        given = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        subject = load(tmp_path / "n.safetensors", factory="bare_net:Net", preprocessing=given)
    assert str(subject.head) == "fc"
    assert subject.label_names is None


def test_copies_leave_the_subject_alone(pico):
    subject = pico("test_resnet", 64)
    before = subject.fingerprint()
    other = subject.with_tensors({"fc.bias": torch.full((3,), 5.0)})
    assert subject.fingerprint() == before != other.fingerprint()
    assert torch.equal(other.tensors()["fc.bias"], torch.full((3,), 5.0))
    moved = subject.to("cpu", torch.bfloat16)
    assert moved.amp_dtype is torch.bfloat16
    assert moved.fingerprint() == before
    assert moved.net is not subject.net


def test_fingerprint_sees_buffers_types_and_single_bits(pico):
    subject = pico("test_resnet", 64)
    name = "bn1.running_mean"
    value = subject.tensors()[name].clone()
    value.view(torch.int32)[0] ^= 1
    assert subject.with_tensors({name: value}).fingerprint() != subject.fingerprint()


def test_half_precision_gives_float32_and_other_bits(pico):
    subject = pico("test_resnet", 64)
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, logits = subject.to("cpu", torch.bfloat16).forward(x)
        plain = subject.forward(x)
    assert features.dtype == logits.dtype == torch.float32
    assert not torch.equal(logits, plain[1])
    torch.testing.assert_close(features, plain[0], rtol=0.1, atol=0.1 * float(plain[0].abs().max()))


def test_devices():
    assert find_device("cpu").type == "cpu"
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "quantum", "meta"):
        with pytest.raises(OptionError, match=f"--device: '{name}' cannot be used here"):
            find_device(name)
