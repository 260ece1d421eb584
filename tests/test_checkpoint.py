from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from surgeon.checkpoint import (
    file_sha256,
    read_checkpoint,
    read_safetensors,
    write_safetensors,
)
from surgeon.errors import CheckpointError

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(7)}


def same(found, expected=STATE):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".ckpt", ".pth.tar"])
def test_reads_plain_pickled_state(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    torch.save(STATE, path)
    read = read_checkpoint(path)
    same(read.tensors)
    assert read.notes == ()
    assert read.sha256 == file_sha256(path)
    assert read.config == {}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: {"state_dict": s, "best_prec1": 91.7}, "'state_dict'"),
        (lambda s: {"model": s, "epoch": 3}, "'model'"),
        (lambda s: {"state_dict": {}, "model_ema": s}, "'model_ema'"),
        (lambda s: {"state_dict_ema": s, "state_dict": {}}, "'state_dict_ema'"),
        (lambda s: {"model": {"state_dict": s}}, r"'model\.state_dict'"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.module."])
def test_wrappers_and_prefixes_come_off(tmp_path, wrap, note, prefix):
    path = tmp_path / "net.th"
    torch.save(wrap({prefix + name: value for name, value in STATE.items()}), path)
    read = read_checkpoint(path)
    same(read.tensors)
    (found,) = read.notes
    assert note.strip("'").replace("\\", "") in found


def test_a_prefix_of_some_names_stays(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "net.pt")
    assert set(read_checkpoint(tmp_path / "net.pt").tensors) == set(state)


def test_a_directory_with_its_config(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", STATE, {"format": "pt"})
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "mine": [1]}')
    read = read_checkpoint(tmp_path)
    same(read.tensors)
    assert read.config == {"architecture": "resnet18", "mine": [1]}
    assert read.path == tmp_path / "model.safetensors"


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Path("net.pt").open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file)
    with pytest.raises(CheckpointError, match=r"net\.pt: refused: .*code execution.*safetensors"):
        read_checkpoint("net.pt")
    torch.save({"state_dict": Payload()}, "zip.pt")
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint("zip.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "holds no tensors"),
        ([1, 2], "holds a list"),
        ({"a": torch.ones(2), "epoch": 3}, r"1 entries are not tensors(.|\n)*epoch: int"),
        (
            {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)},
            r"1 tensors hold NaN or infinity(.|\n)*a: 1 of 2",
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, match):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=match):
        read_checkpoint(tmp_path / "net.pt")


def test_missing_and_damaged_files_are_refused(tmp_path):
    for path in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            read_checkpoint(path)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(CheckpointError, match=r"found suffix '\.onnx'"):
        read_checkpoint(tmp_path / "net.onnx")
    path = tmp_path / "model.safetensors"
    write_safetensors(path, STATE, {})
    whole = path.read_bytes()
    for broken in (b"", whole[:40], whole[:-3], b"x" * 64):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="not a valid safetensors file"):
            read_checkpoint(path)
    torch.save(STATE, tmp_path / "net.pt")
    (tmp_path / "net.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:200])
    with pytest.raises(CheckpointError, match="not a readable PyTorch file"):
        read_checkpoint(tmp_path / "net.pt")


def test_written_file_has_a_sorted_and_padded_header(tmp_path):
    path = tmp_path / "a.safetensors"
    for i in range(8):
        metadata = {"z": "é" * i, "a": "2", "format": "pt"}
        write_safetensors(path, STATE, metadata)
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        header = json.loads(content[8 : 8 + size])
        assert list(header) == sorted(header)
        assert list(header["__metadata__"]) == sorted(metadata)
        tensors, found = read_safetensors(path)
        same(tensors)
        assert found == metadata
        same(safetensors.torch.load_file(path))


def test_timm_loads_the_written_file(tmp_path):
    net = timm.create_model("test_resnet", pretrained=False)
    write_safetensors(tmp_path / "model.safetensors", net.state_dict(), {"format": "pt"})
    path = str(tmp_path / "model.safetensors")
    again = timm.create_model("test_resnet", pretrained=False, checkpoint_path=path)
    same(again.state_dict(), net.state_dict())


def test_views_and_tied_weights_are_written(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": whole, "tied": whole, "turned": whole.T, "part": whole[1]}
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    same(read_safetensors(tmp_path / "a.safetensors")[0], tensors)
