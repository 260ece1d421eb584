from __future__ import annotations

import pytest
import torch

from surgeon.edit import Fold, UnitMask
from surgeon.errors import OptionError
from surgeon.methods import Magnitude, Random
from surgeon.methods.base import new_edit
from surgeon.surgery import layer_rows, sparsity


@pytest.fixture
def masked(small):
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(small.subject.tensors()[name].shape, generator=generator) < share
        for name, share in (("features.0.weight", 0.3), ("features.4.weight", 0.8))
    }
    return new_edit(small.subject, "ffw", masks=masks)


@pytest.fixture
def gated(small):
    units = {
        f"features.{i}": UnitMask(
            torch.arange(width) >= dropped,
            (Fold(f"features.{i + 1}.weight", 0), Fold(f"features.{i + 1}.bias", 0)),
        )
        for i, width, dropped in ((0, 12, 5), (4, 16, 0), (8, 24, 23))
    }
    return new_edit(small.subject, "ffw", units=units)


@pytest.mark.parametrize("kind", [Random, Magnitude])
@pytest.mark.parametrize("like", ["masked", "gated"])
def test_every_layer_has_the_given_sparsity(kind, like, small, request):
    given = request.getfixturevalue(like)
    edit = kind(like=given).fit(small.subject, small.data)
    assert edit.method == kind.name
    assert sparsity(small.subject, edit) == sparsity(small.subject, given)
    for ours, theirs in zip(
        layer_rows(small.subject, edit), layer_rows(small.subject, given), strict=True
    ):
        assert (ours.name, ours.kept) == (theirs.name, theirs.kept)
    for name, unit in edit.units.items():
        assert unit.folds == given.units[name].folds
    assert len(edit.buffers) == 6
    assert not kind(like=given, recalibrate=False).fit(small.subject, small.data).buffers
    assert edit.erasure is None


@pytest.mark.parametrize("kind", [Random, Magnitude])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_is_dropped_of_every_layer_but_the_head(kind, share, small):
    edit = kind(sparsity=share).fit(small.subject, small.data)
    assert set(edit.masks) == {f"features.{i}.weight" for i in (0, 4, 8)}
    for mask in edit.masks.values():
        assert int((~mask).sum()) == round(share * mask.numel())
    with pytest.raises(OptionError, match=r"--sparsity: found 1\.5, expected 0 to 1"):
        kind(sparsity=1.5)


def test_magnitude_drops_the_smallest(masked, gated, small):
    tensors = small.subject.tensors()
    edit = Magnitude(like=masked, recalibrate=False).fit(small.subject, small.data)
    for name, keep in edit.masks.items():
        size = tensors[name].abs()
        assert size[keep].min() >= size[~keep].max()
    edit = Magnitude(like=gated, recalibrate=False).fit(small.subject, small.data)
    for name, unit in edit.units.items():
        norm = tensors[f"{name}.weight"].flatten(1).norm(dim=1)
        if not unit.keep.all():
            assert norm[unit.keep].min() >= norm[~unit.keep].max()


def test_random_is_seeded_and_spread(masked, small):
    masks = [
        Random(like=masked, recalibrate=False, seed=s).fit(small.subject, small.data).masks
        for s in (0, 0, 1)
    ]
    name = "features.4.weight"
    assert torch.equal(masks[0][name], masks[1][name])
    assert not torch.equal(masks[0][name], masks[2][name])
    both = (~masks[0][name] & ~masks[2][name]).float().mean()
    share = float((~masks[0][name]).float().mean())
    assert abs(float(both) - share**2) < 0.02  # independent draws
    size = small.subject.tensors()[name].abs()
    dropped, kept = size[~masks[0][name]].mean(), size[masks[0][name]].mean()
    assert 0.8 < float(dropped / kept) < 1.25
