"""Networks of transformers and repositories of the hub, without a connection."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import hugging_face
from surgeon.errors import CheckpointError, OptionError
from surgeon.export import export
from surgeon.formats import Formats
from surgeon.hugging_face import find_checkpoint, label_names, preprocessing
from surgeon.loading import load
from surgeon.surgery import apply
from tests.test_export import random_edit

transformers = pytest.importorskip("transformers")

PROCESSOR = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.25],
}


@pytest.fixture
def vit(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "owl"},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return tmp_path / "vit"


def read(folder):
    return transformers.AutoModelForImageClassification.from_pretrained(folder).eval()


def images(n=3):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_network_of_transformers_is_read_and_written(vit, tmp_path):
    subject, x = load(vit), images()
    assert str(subject.architecture) == "transformers:ViTForImageClassification"
    assert subject.label_names == ("cat", "dog", "owl")
    assert subject.preprocessing.interpolation == "bicubic"
    assert subject.preprocessing.mean == (0.4, 0.5, 0.6)
    torch.testing.assert_close(subject.forward(x)[1], read(vit)(x).logits)
    edit = random_edit(subject)
    out, folded = export(subject, edit, tmp_path / "out"), apply(subject, edit)
    torch.testing.assert_close(read(out)(x).logits, folded.forward(x)[1])
    assert json.loads((out / "preprocessor_config.json").read_text()) == PROCESSOR
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (vit / "config.json").read_text()
    )
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict = {}
    exec(code[1].replace("PATH_OF_THIS_FOLDER", str(out)), names)
    torch.testing.assert_close(names["net"](x).logits, folded.forward(x)[1])


_ALONE = """
import sys
sys.modules["surgeon"] = None
sys.path.insert(0, sys.argv[1])
from load_sliced import load
from safetensors.torch import load_file, save_file
x = load_file(sys.argv[2])["x"]
save_file({"logits": load()(x).logits.detach()}, sys.argv[2])
"""


@torch.no_grad()
def test_a_network_of_transformers_is_sliced(vit, tmp_path):
    subject, x = load(vit), images()
    edit = random_edit(subject, "units")
    out = export(subject, edit, tmp_path / "out", formats=Formats(slice=True, full=True))
    small, wanted = load(out), apply(subject, edit).forward(x)[1]
    heads = [layer.attention.num_attention_heads for layer in small.net.vit.layers]
    assert min(heads) < 4
    torch.testing.assert_close(small.forward(x)[1], wanted)
    torch.testing.assert_close(read(out / "full")(x).logits, wanted)
    save_file({"x": x}, tmp_path / "x")
    subprocess.run([sys.executable, "-c", _ALONE, str(out), str(tmp_path / "x")], check=True)
    torch.testing.assert_close(load_file(tmp_path / "x")["logits"], wanted)


def test_missing_weights_are_named(vit):
    tensors = load_file(vit / "model.safetensors")
    tensors.pop("classifier.weight")
    save_file(tensors, vit / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="1 keys do not fit ViTFor") as caught:
        load(vit)
    assert "missing classifier.weight" in str(caught.value.details)
    config = json.loads((vit / "config.json").read_text())
    (vit / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(
        CheckpointError,
        match=r"builds no image classifier of model_type 'unheard-of' \(Unr.{,140}\)$",
    ):
        load(vit)


@pytest.mark.parametrize(
    ("processor", "size", "pct", "mode"),
    [
        (PROCESSOR, (3, 32, 32), 1.0, "squash"),
        ({"size": 224}, (3, 224, 224), 0.875, "center"),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.95}, (3, 224, 224), 0.95, "center"),
        ({"size": {"shortest_edge": 384}}, (3, 384, 384), 1.0, "squash"),
        (
            {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True},
            (3, 224, 224),
            0.875,
            "center",
        ),
    ],
)
def test_processors_are_translated(processor, size, pct, mode):
    found = preprocessing(processor)
    assert (found["input_size"], found["crop_pct"], found["crop_mode"]) == (size, pct, mode)


def test_classes_that_only_count_have_no_names():
    assert label_names({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}) is None
    assert label_names({}) is None
    assert label_names({"id2label": {"0": "cat", "1": "LABEL_1"}}) == {"0": "cat", "1": "LABEL_1"}


def test_the_hub_is_asked_for_what_is_needed(vit, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, **settings):
        asked.append((repository, settings["revision"]))
        return str(vit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = load("hf-hub:owner/name@v1")
    assert (found.num_classes, found.hub_id) == (3, "owner/name")
    assert find_checkpoint("hf-hub:owner/name") == vit
    assert asked == [("owner/name", "v1"), ("owner/name", None)]
    assert find_checkpoint(f"local-dir:{vit}") == vit


def test_a_repository_that_cannot_be_had_is_named(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no route\nto anywhere")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"hf-hub:a/b: cannot be had \(no route\)"):
        load("hf-hub:a/b")


def test_missing_packages_are_named(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(hugging_face.importlib, "import_module", refuse)
    with pytest.raises(OptionError, match=r"needs huggingface_hub; pip install"):
        find_checkpoint("hf-hub:owner/name")
    with pytest.raises(OptionError, match="needs transformers; pip install"):
        hugging_face.build({"model_type": "vit"})
