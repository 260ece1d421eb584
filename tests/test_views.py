from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from surgeon.data import Rows, extract
from surgeon.gradcam import find_feature_map
from surgeon.methods import DFR, Leace
from surgeon.methods.base import device_changes, new_edit
from surgeon.views import KINDS, view


def right(toy, edit=None):
    rows = toy.data.report
    changes = device_changes(toy.subject, edit) if edit else None
    return extract(toy.subject, rows, overrides=changes).logits.argmax(1) == rows.groups.target


@pytest.fixture(scope="module")
def seen(toy):
    edit = DFR().fit(toy.subject, toy.data)
    return view(toy.subject, toy.data, edit, right(toy), right(toy, edit))


def test_an_image_is_of_a_row_that_changed_sides(toy, seen):
    assert {example.kind for example in seen.examples} == set(KINDS)
    for example in seen.examples:
        was, is_now = KINDS[example.kind]
        assert (example.before == example.target) == was
        assert (example.after == example.target) == is_now
        assert set(example.bias) == {"bias"}
        row = int(example.path.removesuffix(".png"))
        assert str(int(toy.data.labels.groups.target[row])) == example.target
    groups = [(example.target, example.bias["bias"]) for example in seen.examples]
    assert groups == sorted(groups, key=groups.index)  # one group after the other
    assert groups[0] in {("0", "1"), ("1", "0")}  # the worst first
    assert all(groups.count(group) <= 12 for group in groups)


def test_an_image_shows_what_the_network_sees(toy, seen):
    side = toy.subject.preprocessing.input_size[1]
    names = [f"{k:03d}.png" for k in range(1, len(seen.examples) + 1)]
    assert [entry["file"] for entry in seen.to_json()["examples"]] == [
        f"examples/{name}" for name in names
    ]
    rows = toy.data.report
    target, bias = int(seen.examples[0].target), int(seen.examples[0].bias["bias"])
    own = (rows.groups.target == target) & (rows.groups.biases[:, 0] == bias)
    pixels = rows.batch(own.nonzero().flatten()) * 0.5 + 0.5
    image = Image.open(io.BytesIO(seen.examples[0].image))
    assert image.size == (side, side)
    shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    shown = shown.reshape(side, side, 3).permute(2, 0, 1) / 255
    assert float((pixels.clamp(0, 1) - shown).abs().amax((1, 2, 3)).min()) < 0.01


def test_the_plane_is_that_of_the_greatest_variance(toy, seen):
    features = extract(toy.subject, toy.data.report).features
    rows = torch.linspace(0, len(features) - 1, 500).round().long()
    centred = features[rows].double() - features[rows].double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    assert seen.before.shares == pytest.approx((values[:2] / values.sum()).tolist())
    points = seen.before.points
    torch.testing.assert_close(points.T @ points / 500, torch.eye(2, dtype=torch.float64))
    # Last-layer retraining moves no feature.
    assert torch.equal(points, seen.after.points)
    assert seen.bias["bias"] == tuple(str(int(b)) for b in toy.data.report.groups.biases[rows, 0])


def test_features_after_are_those_behind_the_erasure(toy):
    edit = Leace().fit(toy.subject, toy.data)
    after = view(toy.subject, toy.data, edit, right(toy), right(toy, edit)).after.points
    bias = toy.data.report.groups.biases[:, 0]
    rows = torch.linspace(0, len(bias) - 1, 500).round().long()
    told = [after[bias[rows] == value].mean(0) for value in (0, 1)]
    before = view(toy.subject, toy.data, new_edit(toy.subject, "none"), right(toy), right(toy))
    gap = [before.before.points[bias[rows] == value].mean(0) for value in (0, 1)]
    assert (told[0] - told[1]).abs().max() < 0.3 < (gap[0] - gap[1]).abs().max()


def test_few_rows_and_a_single_feature_are_shown_too(toy, small):
    rows = small.data.report
    few = Rows(rows.images, rows.groups.take(torch.arange(2)), rows.index[:2])
    data = replace(small.data, report=few)
    none = new_edit(toy.subject, "none")
    correct = torch.ones(2, dtype=torch.bool)
    found = view(toy.subject, data, none, correct, correct)
    assert found.examples == ()
    assert found.before.points.shape == (2, 2)
    assert bool(found.before.points.isfinite().all())


def test_where_it_looks_is_drawn_if_that_is_asked(toy, seen):
    edit = DFR().fit(toy.subject, toy.data)
    shown = view(
        toy.subject,
        toy.data,
        edit,
        right(toy),
        right(toy, edit),
        where=find_feature_map(toy.subject),
    )
    assert [e.to_json() for e in shown.examples] == [e.to_json() for e in seen.examples]
    assert all(set(example.looks) == {"before", "after"} for example in shown.examples)
    size = Image.open(io.BytesIO(shown.examples[0].image)).size
    for picture in shown.examples[0].looks.values():
        assert Image.open(io.BytesIO(picture)).size == size
    # The head changed, and with it what a place says.
    assert any(e.looks["before"] != e.looks["after"] for e in shown.examples)
    named = [
        name for e in shown.to_json()["examples"] for name in (e["file"], *e["looks"].values())
    ]
    assert sorted(named) == sorted(shown.pictures())
    assert len(shown.pictures()) == 3 * len(seen.pictures())
    assert all(entry["looks"] == {} for entry in seen.to_json()["examples"])


def test_of_a_network_that_is_always_right_no_image_is_shown(toy):
    always = torch.ones(len(toy.data.report), dtype=torch.bool)
    shown = view(
        toy.subject,
        toy.data,
        new_edit(toy.subject, "none"),
        always,
        always,
        where=find_feature_map(toy.subject),
    )
    assert shown.examples == ()
    assert shown.pictures() == {}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_same_is_drawn(toy):
    edit = DFR().fit(toy.subject, toy.data)
    sides = right(toy), right(toy, edit)
    here = view(toy.subject, toy.data, edit, *sides, where=find_feature_map(toy.subject))
    there = view(
        toy.subject.to("cuda"), toy.data, edit, *sides, where=find_feature_map(toy.subject)
    )
    for one, other in zip(here.examples, there.examples, strict=True):
        for when, picture in one.looks.items():
            pixels = [
                torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                for image in (Image.open(io.BytesIO(p)) for p in (picture, other.looks[when]))
            ]
            assert float((pixels[0].float() - pixels[1].float()).abs().mean()) < 2
