from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgeon.checkpoint import read_safetensors
from surgeon.edit import Edit, Erasure, Fold, UnitMask, pack, unpack
from surgeon.errors import ArtefactError, IncompatibleError
from surgeon.head import Head

FC = Head(("fc",))
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def bits(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < 0.5


def whole_edit(shape=(3, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Edit(
        "ab" * 32,
        "timm:toy",
        "ffw",
        FC,
        masks={"conv.weight": bits(shape, seed), "fc.weight": bits((2, 9), seed + 1)},
        units={"conv": UnitMask(bits((11,), seed), (Fold("bn.weight", 0), Fold("fc.weight", 1)))},
        buffers={"bn.running_mean": torch.rand(3, generator=generator)},
        updates={"fc.bias": torch.rand(2, generator=generator)},
        erasure=Erasure(
            *(
                torch.rand(s, generator=generator, dtype=torch.float64)
                for s in ((9, 2), (2, 9), (9,))
            )
        ),
    )


def same(a, b):
    assert (a.base_sha256, a.architecture, a.method, a.head) == (
        b.base_sha256,
        b.architecture,
        b.method,
        b.head,
    )
    for part in ("masks", "buffers", "updates"):
        left, right = getattr(a, part), getattr(b, part)
        assert set(left) == set(right)
        assert all(torch.equal(left[k], right[k]) for k in left)
        assert all(left[k].dtype == right[k].dtype for k in left)
    assert set(a.units) == set(b.units)
    for name, unit in a.units.items():
        assert torch.equal(unit.keep, b.units[name].keep)
        assert unit.folds == b.units[name].folds
    assert (a.erasure is None) == (b.erasure is None)
    for k in ("left", "right", "mean") if a.erasure else ():
        assert torch.equal(getattr(a.erasure, k), getattr(b.erasure, k))


@given(SHAPES, st.integers(0, 99))
def test_bits_are_packed_along_the_flattened_mask(shape, seed):
    mask = bits(shape, seed)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(mask.numel() / 8)
    for i, keep in enumerate(mask.flatten().tolist()):  # little order, 1 keeps
        assert bool(packed[i // 8] >> (i % 8) & 1) == keep
    assert torch.equal(unpack(packed, list(shape)), mask)


@given(SHAPES, st.integers(0, 99), st.sets(st.sampled_from(["masks", "units", "erasure"])))
def test_round_trip(tmp_path_factory, shape, seed, left_out):
    path = tmp_path_factory.mktemp("edit") / "edit.safetensors"
    edit = whole_edit(shape, seed).without(*left_out)
    edit.save(path)
    again = Edit.load(path)
    same(again, edit)
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_file_layout(tmp_path):
    edit = whole_edit()
    edit.save(tmp_path / "edit.safetensors")
    tensors, header = read_safetensors(tmp_path / "edit.safetensors")
    assert set(tensors) == {
        "mask.conv.weight",
        "mask.fc.weight",
        "unit.conv",
        "buffer.bn.running_mean",
        "update.fc.bias",
        "erasure.left",
        "erasure.right",
        "erasure.mean",
    }
    assert set(header) == {"format", "surgeon.edit"}
    assert header["format"] == "pt"
    record = json.loads(header["surgeon.edit"])
    assert set(record) == {"version", "base_sha256", "architecture", "method", "shapes", "parts"}
    assert record["shapes"]["mask.conv.weight"] == [3, 5]
    assert tensors["erasure.left"].dtype == torch.float64
    expected = np.packbits(edit.masks["conv.weight"].numpy().reshape(-1), bitorder="little")
    assert tensors["mask.conv.weight"].tolist() == expected.tolist()


def test_what_is_no_edit_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    with pytest.raises(ArtefactError, match="no such file"):
        Edit.load(path)
    path.write_bytes(b"12345678 no safetensors")
    with pytest.raises(ArtefactError, match="not an edit"):
        Edit.load(path)
    whole_edit().save(path)
    path.write_bytes(path.read_bytes().replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(ArtefactError, match="version 9, this surgeon reads 1"):
        Edit.load(path)


def test_changes_compose_masks_units_buffers_updates(tmp_path):
    tensors = {
        "conv.weight": torch.full((3, 5), 2.0),
        "bn.weight": torch.arange(1.0, 4.0),
        "bn.running_mean": torch.zeros(3),
        "fc.weight": torch.ones(2, 3),
        "fc.bias": torch.ones(2),
    }
    keep = torch.tensor([True, False, True])
    edit = Edit(
        "",
        "",
        "",
        FC,
        masks={"conv.weight": torch.eye(3, 5, dtype=torch.bool)},
        units={
            "conv": UnitMask(keep, (Fold("bn.weight", 0),)),
            "hidden": UnitMask(~keep, (Fold("fc.weight", 1),)),
        },
        buffers={"bn.running_mean": torch.ones(3, dtype=torch.float64)},
    )
    new = edit.changes(tensors)
    assert torch.equal(new["conv.weight"], 2 * torch.eye(3, 5))
    assert new["bn.weight"].tolist() == [1, 0, 3]
    assert new["fc.weight"].tolist() == [[0, 1, 0]] * 2
    assert new["bn.running_mean"].dtype == torch.float32
    assert "fc.bias" not in new
    updated = replace(edit, updates={"fc.weight": torch.full((2, 3), 7.0)}).changes(tensors)
    assert updated["fc.weight"].tolist() == [[7, 7, 7]] * 2


def test_a_masked_weight_is_zero_even_where_the_base_is_large():
    weight = torch.tensor([float("inf"), -3e38, 1.0])
    edit = Edit("", "", "", FC, masks={"w": torch.tensor([False, False, True])})
    assert edit.changes({"w": weight})["w"].tolist() == [0, 0, 1]


def test_erasure_needs_an_additive_term():
    erasure = Erasure(*(torch.ones(shape, dtype=torch.float64) for shape in ((2, 1), (1, 2), (2,))))
    edit = Edit("", "", "", FC, erasure=erasure)
    with pytest.raises(IncompatibleError, match="no additive term"):
        edit.changes({"fc.weight": torch.ones(3, 2)})


def test_an_erasure_of_rank_zero_changes_nothing_and_comes_back(tmp_path):
    nothing = Erasure(*(torch.zeros(s, dtype=torch.float64) for s in ((9, 0), (0, 9), (9,))))
    edit = replace(whole_edit(), erasure=nothing)
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.erasure is not None
    assert again.erasure.left.shape == (9, 0)
    features = torch.randn(4, 9)
    assert torch.equal(again.erasure(features), features)
