from __future__ import annotations

import csv
import json

import pytest
import timm
import torch

from surgeon.data import extract, read_data
from surgeon.demo import make_demo
from surgeon.errors import ArtefactError
from surgeon.loading import load
from surgeon.metrics import group_accuracies


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    make_demo(out, seed=0)
    return out


def test_files_are_those_of_an_owner(demo):
    names = sorted(path.name for path in demo.iterdir() if not path.name.startswith("."))
    assert names == ["config.json", "images", "model.safetensors", "val.csv"]
    with (demo / "val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"path", "target", "bias", "split"}
    parts = [row["split"] for row in rows]
    assert [parts.count(part) for part in ("fit", "select", "report")] == [400, 100, 397]
    assert len(list((demo / "images").iterdir())) == 897
    names = json.loads((demo / "config.json").read_text())["label_names"]
    assert {row["target"] for row in rows} == set(names)
    net = timm.create_model(f"local-dir:{demo}", pretrained=True)
    assert net.num_classes == 2


def test_the_network_leans_on_the_colour_and_the_rows_do_not(demo):
    subject = load(demo)
    data = read_data(subject, demo / "val.csv")
    groups = data.report.groups
    counts = groups.counts()
    assert len(counts) == 4
    assert counts.min() > 70
    logits = extract(subject, data.report).logits
    accuracy = group_accuracies(logits.argmax(1) == groups.target, groups.index, 4)
    same = groups.target == groups.biases[:, 0]
    aligned = torch.stack(
        [(logits.argmax(1) == groups.target)[m].float().mean() for m in (same, ~same)]
    )
    assert abs(float(aligned[0] - aligned[1])) > 0.2
    assert accuracy.min() < 0.75
    assert accuracy.max() > 0.85
    assert accuracy.mean() > 0.6


def test_same_seed_same_demo_other_seed_another(demo, tmp_path, monkeypatch):
    module = __import__("surgeon.demo", fromlist=["_EPOCHS"])
    monkeypatch.setattr(module, "_EPOCHS", 1)
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_demo(tmp_path / name, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    for file in ("model.safetensors", "val.csv", "images/0000.png"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c
    assert (tmp_path / "a" / "val.csv").read_bytes() == (demo / "val.csv").read_bytes()


def test_an_earlier_demo_is_replaced_and_nothing_else(demo, tmp_path, monkeypatch):
    module = __import__("surgeon.demo", fromlist=["_EPOCHS"])
    monkeypatch.setattr(module, "_EPOCHS", 1)
    with pytest.raises(ArtefactError, match="exists already"):
        make_demo(demo, seed=0)
    make_demo(tmp_path / "out", seed=0)
    make_demo(tmp_path / "out", seed=1, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "surgeon.json").touch()
    with pytest.raises(ArtefactError, match="not an earlier result"):
        make_demo(tmp_path / "other", seed=0, force=True)
