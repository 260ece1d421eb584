from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from surgeon.benchmarks.nets import SmallConvNet
from surgeon.checkpoint import file_sha256, read_safetensors, write_safetensors
from surgeon.edit import Edit
from surgeon.errors import ArtefactError
from surgeon.export import Provenance, export, export_config
from surgeon.gates import Gates
from surgeon.loading import load
from surgeon.methods.base import new_edit
from surgeon.preprocessing import open_image
from surgeon.sites import unit_sites, weight_sites
from surgeon.surgery import apply

# The package's `export` is the function.
MODULE = importlib.import_module("surgeon.export")


def save(folder, net, name, side, **config):
    """Write a checkpoint as an owner has it, its statistics made uneven."""
    generator = torch.Generator().manual_seed(0)
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    folder.mkdir(parents=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    shape = {"input_size": [3, side, side], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    shape |= {"interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center"}
    document = {"architecture": name, "num_classes": 3, "pretrained_cfg": shape, **config}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def random_edit(subject, kind="weights"):
    sites = weight_sites(subject) if kind == "weights" else unit_sites(subject)
    gates = Gates(subject, sites, initial=0.0, hard=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logit in gates.logits:
            logit.copy_(torch.rand(logit.shape, generator=generator) - 0.2)
    return new_edit(subject, "ffw", masks=gates.masks(), units=gates.units())


@pytest.fixture
def vit(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("test_vit", pretrained=False, num_classes=3, img_size=64)
    extra = {"model_args": {"img_size": 64}, "label_names": ["a", "b", "c"], "owner": {"x": 1}}
    return save(tmp_path / "vit", net, "test_vit", 64, **extra)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(vit, tmp_path):
    subject = load(vit)
    edit = random_edit(subject)
    x = torch.randn(70, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    provenance = Provenance(command="surgeon prune", config={"gamma": 3}, seed=5)
    out = export(subject, edit, tmp_path / "out", images=x, provenance=provenance)
    assert files(out) == [
        "README.md",
        "config.json",
        "edit.safetensors",
        "model.safetensors",
        "report_logits.safetensors",
        "surgeon.json",
    ]
    again, folded = load(out), apply(subject, edit)
    assert again.fingerprint() == folded.fingerprint() != subject.fingerprint()
    assert again.label_names == ("a", "b", "c")
    assert again.preprocessing == subject.preprocessing
    assert again.architecture == subject.architecture
    logits = load_file(out / "report_logits.safetensors")["logits"]
    # As others load it: with another layout the last bits may differ, by processor.
    again.net.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        assert torch.equal(again.forward(x[:64])[1], logits)
    twice = Edit.load(out / "edit.safetensors")
    assert apply(subject, twice).fingerprint() == folded.fingerprint()
    record = json.loads((out / "surgeon.json").read_text())
    assert record["base"]["sha256"] == file_sha256(vit / "model.safetensors")
    assert record["edit_sha256"] == file_sha256(out / "edit.safetensors")
    assert record["model_sha256"] == file_sha256(out / "model.safetensors")
    assert (record["command"], record["config"], record["seed"]) == (
        "surgeon prune",
        {"gamma": 3},
        5,
    )
    header = read_safetensors(out / "model.safetensors")[1]
    assert header["surgeon.base_sha256"] == record["base"]["sha256"]
    assert header["surgeon.edit_sha256"] == record["edit_sha256"]
    config = json.loads((out / "config.json").read_text())
    assert config["owner"] == {"x": 1}
    assert config["model_args"] == {"img_size": 64}
    assert config["num_features"] == subject.num_features
    assert config["pretrained_cfg"]["crop_pct"] == 0.9
    assert str(tmp_path) not in "".join(
        (out / n).read_text() for n in ("README.md", "config.json", "surgeon.json")
    )


def test_without_images_nothing_is_kept_of_the_proof(vit, tmp_path):
    subject = load(vit)
    out = export(subject, random_edit(subject, "units"), tmp_path / "out")
    assert "report_logits.safetensors" not in files(out)


@pytest.mark.parametrize("offset", [1, 1000, -1])
def test_a_flipped_byte_is_found_and_leaves_nothing(vit, tmp_path, monkeypatch, offset):
    subject = load(vit)

    def write(path, tensors, metadata):
        write_safetensors(path, tensors, metadata)
        if path.name == "model.safetensors":
            content = bytearray(path.read_bytes())
            start = 8 + int.from_bytes(content[:8], "little")
            content[start + offset if offset > 0 else offset] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(MODULE, "write_safetensors", write)
    with pytest.raises(ArtefactError, match="reads back with other values"):
        export(subject, random_edit(subject), tmp_path / "deep" / "out")
    assert files(tmp_path / "deep") == []


@pytest.mark.parametrize("images", [None, torch.ones(2, 3, 64, 64)])
def test_a_wrong_fold_is_found_and_the_earlier_result_stays(vit, tmp_path, monkeypatch, images):
    subject = load(vit)
    edit = random_edit(subject)
    out = export(subject, edit, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = replace(edit, updates={"head.bias": torch.ones(3)})
    monkeypatch.setattr(MODULE, "apply", lambda base, _: apply(base, other))
    with pytest.raises(ArtefactError, match="folded and gated logits differ"):
        export(subject, edit, out, images=images, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert files(tmp_path) == ["out", "vit"]
    with pytest.raises(ArtefactError, match="exists already"):
        export(subject, edit, out)


def test_an_exported_model_is_a_base_of_its_own(vit, tmp_path):
    subject = load(vit)
    edit = random_edit(subject)
    exported = load(export(subject, edit, tmp_path / "out"))
    with pytest.raises(ArtefactError, match="the edit expects"):
        export(exported, edit, tmp_path / "twice")
    again = export(exported, random_edit(exported), tmp_path / "twice")
    assert load(again).label_names == ("a", "b", "c")


SCRIPT = """
import json, sys
import timm, torch
from PIL import Image
from pathlib import Path
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

for out in map(Path, sys.argv[1:]):
    config = json.loads((out / "config.json").read_text())
    nets = [
        timm.create_model(f"local-dir:{out}", pretrained=True),
        timm.create_model(
            config["architecture"],
            num_classes=config["num_classes"],
            checkpoint_path=str(out / "model.safetensors"),
            **config.get("model_args", {}),
        ),
    ]
    transform = create_transform(**resolve_data_config({}, model=nets[0]))
    paths = sorted((out.parent / "images").iterdir())[:64]
    x = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    expected = load_file(out / "report_logits.safetensors")["logits"]
    for net in nets:
        with torch.no_grad():
            assert torch.equal(net.eval()(x), expected), out
    assert config["label_names"] == ["a", "b", "c"]
assert not any(name.split(".")[0] in ("surgeon", "surgeon_cli") for name in sys.modules)
"""


def test_timm_alone_gives_the_recorded_logits_bit_for_bit(vit, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("test_efficientnet", pretrained=False, num_classes=3)
    conv = save(tmp_path / "conv", net, "test_efficientnet", 48, label_names=["a", "b", "c"])
    generator = torch.Generator().manual_seed(0)
    outs = []
    for folder in (vit, conv):
        subject = load(folder)
        (tmp_path / f"of_{folder.name}" / "images").mkdir(parents=True)
        paths = [tmp_path / f"of_{folder.name}" / "images" / f"{i:03d}.png" for i in range(70)]
        for path in paths:
            pixels = torch.randint(256, (61, 75, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(path)
        transform = subject.preprocessing.transform()
        x = torch.stack([transform(open_image(path)) for path in paths])
        kind = "weights" if folder == vit else "units"
        out = tmp_path / f"of_{folder.name}" / "out"
        outs.append(export(subject, random_edit(subject, kind), out, images=x))
    threads = str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *outs],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
    )


def code_of_card(out):
    return re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]


def test_card_loads_a_timm_network(vit, tmp_path):
    subject = load(vit)
    out = export(subject, random_edit(subject), tmp_path / "out")
    code = code_of_card(out).replace("PATH_OF_THIS_FOLDER", str(out))
    names: dict = {}
    exec(code, names)
    assert torch.equal(names["net"].state_dict()["head.bias"], subject.tensors()["head.bias"])


def test_card_loads_a_torchvision_network(tmp_path, monkeypatch):
    net = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    given = {"input_size": (3, 64, 64)}
    subject = load(
        tmp_path / "net.safetensors", arch="torchvision:shufflenet_v2_x0_5", preprocessing=given
    )
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    out = export(subject, random_edit(subject, "units"), tmp_path / "out", images=x)
    config = json.loads((out / "config.json").read_text())
    assert config["library"] == "torchvision"
    assert config["preprocessing"]["input_size"] == [3, 64, 64]
    assert load(out).preprocessing == subject.preprocessing
    monkeypatch.chdir(out)
    names: dict = {}
    exec(code_of_card(out), names)
    with torch.no_grad():
        expected = load_file("report_logits.safetensors")["logits"]
        assert torch.equal(names["net"](x), expected)


def test_card_loads_a_factory_network(tmp_path, monkeypatch):
    factory = "surgeon.benchmarks.nets:SmallConvNet"
    torch.save({"state_dict": SmallConvNet(num_classes=4).state_dict()}, tmp_path / "net.th")
    subject = load(tmp_path / "net.th", factory=factory, model_kwargs={"num_classes": 4})
    out = export(subject, random_edit(subject), tmp_path / "out")
    monkeypatch.chdir(out)
    names: dict = {}
    exec(code_of_card(out), names)
    assert names["net"].fc.out_features == 4
    again = load(out, factory=factory)
    assert again.fingerprint() == apply(subject, random_edit(subject)).fingerprint()


def test_config_takes_the_pool_and_the_head_of_timm(vit):
    config = export_config(load(vit))
    assert config["global_pool"] == timm.create_model("test_vit", pretrained=False).global_pool
    assert config["pretrained_cfg"]["num_classes"] == 3
    assert config["pretrained_cfg"]["classifier"] == "head"


def test_a_card_has_the_metadata_of_its_base(vit, tmp_path):
    subject = load(vit)
    own = {**subject.config, "license": 'apache-2.0: or "so"'}
    named = replace(subject, hub_id="owner/name", config=own)
    card = (export(named, random_edit(subject), tmp_path / "out") / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        **{"pipeline_tag": "image-classification", "library_name": "timm"},
        **{"tags": ["image-classification", "timm"], "base_model": "owner/name"},
        "license": 'apache-2.0: or "so"',
    }
    assert "That of the base: `apache-2.0" in text
    card = (export(subject, random_edit(subject), tmp_path / "bare") / "README.md").read_text()
    assert not {"license", "base_model"} & set(yaml.safe_load(card.split("---\n", 2)[1]))
    assert "ask its owner" in card
