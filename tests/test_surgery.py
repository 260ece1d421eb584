from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from surgeon.benchmarks.nets import SmallConvNet
from surgeon.edit import Edit, Erasure, Fold, UnitMask
from surgeon.errors import ArtefactError, IncompatibleError
from surgeon.gates import Gates
from surgeon.methods.base import new_edit
from surgeon.sites import module_sites, unit_sites, weight_sites
from surgeon.surgery import apply, layer_rows, prove, sparsity
from tests.nets import NETS


def edit_of(subject, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "weights":
        sites = weight_sites(subject, gate_head=True)
    else:
        sites = module_sites(subject, own_output=True) if kind == "own" else unit_sites(subject)
    gates = Gates(subject, sites, initial=0.0, hard=True)
    with torch.no_grad():
        for logit in gates.logits:
            logit.copy_(torch.rand(logit.shape, generator=generator) - 0.3)
    left = 0.3 * torch.randn(subject.num_features, 2, dtype=torch.float64, generator=generator)
    mean = torch.randn(subject.num_features, dtype=torch.float64, generator=generator)
    edit = Edit(
        subject.sha256,
        str(subject.architecture),
        "test",
        subject.head,
        masks=gates.masks(),
        units=gates.units(),
        erasure=Erasure(left, torch.linalg.pinv(left), mean),
    )
    return gates, edit


def images(subject, n=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, *subject.preprocessing.input_size, generator=generator)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["weights", "units", "own"])
def test_gated_network_equals_the_folded_one(name, kind, pico):
    net, side, kwargs = NETS[name]
    subject = pico(net, side, **kwargs)
    before = subject.fingerprint()
    gates, edit = edit_of(subject, kind)
    x = images(subject)
    with torch.no_grad():
        overrides = gates.overrides()
        features, logits = subject.forward(x, overrides)
        now = {**subject.head_tensors, **overrides}
        erased = linear(
            edit.erasure(features), subject.head.weight(now), subject.head.bias_term(now)
        )
        masked = apply(subject, edit.without("erasure"))
        whole = apply(subject, edit)
        close(masked.forward(x)[1], logits)
        close(whole.forward(x)[0], features)
        close(whole.forward(x)[1], erased)
        assert not torch.allclose(logits, subject.forward(x)[1], rtol=1e-2)
        assert not torch.allclose(erased, logits, rtol=1e-2)
    assert prove(subject, edit, whole, x) <= 1e-5
    with pytest.raises(ArtefactError, match="folded and gated logits differ"):
        prove(subject, edit, masked, x)
    assert subject.fingerprint() == before
    assert {n: t.shape for n, t in whole.tensors().items()} == {
        n: t.shape for n, t in subject.tensors().items()
    }


@pytest.mark.parametrize("name", ["test_resnet", "attention"])
def test_a_mask_changes_no_weight_but_to_zero(name, pico):
    net, side, kwargs = NETS[name]
    subject = pico(net, side, **kwargs)
    for kind in ("weights", "units"):
        _, edit = edit_of(subject, kind)
        folded = apply(subject, edit.without("erasure")).tensors()
        for key, value in subject.tensors().items():
            new = folded[key]
            assert bool(((new == value) | (new == 0)).all()), key


def test_parts_are_carried_out_in_order(pico):
    subject = pico(SmallConvNet, 14)
    _, edit = edit_of(subject, "weights")
    mean, weight = "features.1.running_mean", "features.0.weight"
    new = torch.full((16, 3, 3, 3), 2.0)
    edit = replace(edit, buffers={mean: torch.arange(16.0)}, updates={weight: new})
    folded = apply(subject, edit).tensors()
    assert torch.equal(folded[mean], torch.arange(16.0))
    assert torch.equal(folded[weight], new)  # an update comes after the mask
    assert not torch.equal(subject.tensors()[mean], torch.arange(16.0))


def test_an_edit_of_another_base_is_refused(pico):
    subject = pico(SmallConvNet, 14)
    _, edit = edit_of(subject, "weights")
    with pytest.raises(ArtefactError, match=r"found sha256 0000.*expects abcd"):
        apply(subject, replace(edit, base_sha256="abcd" * 16))
    foreign = replace(edit, updates={"nowhere.weight": torch.ones(1)})
    with pytest.raises(IncompatibleError, match=r"1 tensors of the edit(.|\n)*nowhere\.weight"):
        apply(subject, foreign)


def test_layer_rows_count_weights_and_dead_units(pico):
    subject = pico(SmallConvNet, 14)
    mask = torch.ones(16, 3, 3, 3, dtype=torch.bool)
    mask[:2] = False
    mask[5, 0, 0, 0] = False
    edit = Edit(subject.sha256, "", "test", "fc", masks={"features.0.weight": mask})
    rows = {row.name: row for row in layer_rows(subject, edit)}
    assert list(rows) == ["features.0", "features.3", "features.7", "features.10", "fc"]
    row = rows["features.0"]
    assert (row.weights, row.kept, row.units, row.dead_units) == (432, 432 - 55, 16, 2)
    assert row.sparsity == 1 - (432 - 55) / 432
    assert rows["fc"].sparsity == 0
    found = sparsity(subject, edit)
    total = sum(p.numel() for p in subject.net.parameters())
    assert (found.gated, found.all, found.units) == (55 / 432, 55 / total, None)


def test_layer_rows_of_unit_gates(pico):
    subject = pico(SmallConvNet, 14)
    _, edit = edit_of(subject, "units")
    rows = {row.name: row for row in layer_rows(subject, edit)}
    for name, unit in edit.units.items():
        dropped = int((~unit.keep).sum())
        row = rows[name]
        assert row.dead_units == dropped > 0
        assert row.weights - row.kept == dropped * row.weights // row.units
    pruned = sum(row.weights - row.kept for row in rows.values())
    found = sparsity(subject, edit)
    assert found.gated == pruned / sum(rows[n].weights for n in edit.units)
    assert 0.2 < found.units < 0.4


def test_packed_attention_projections_have_rows_of_their_own(pico):
    subject = pico(*NETS["attention"][:2])
    _, edit = edit_of(subject, "weights")
    rows = {row.name: row for row in layer_rows(subject, edit)}
    packed = [name for name in edit.masks if name.endswith("in_proj_weight")]
    assert len(packed) == 2
    for name in packed:
        row, mask = rows[name], edit.masks[name]
        assert (row.kind, row.weights, row.kept) == ("MultiheadAttention", 768, int(mask.sum()))
    assert sum(row.weights - row.kept for row in rows.values()) == sum(
        int((~mask).sum()) for mask in edit.masks.values()
    )


def test_a_module_used_under_two_names_changes_under_both(pico):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.second, self.fc = self.first, nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.second(self.first(x).relu()).mean((2, 3)))

    subject = pico(Shared, 8)
    keep = torch.tensor([True, False, True])
    edit = new_edit(subject, "test", units={"first": UnitMask(keep, (Fold("first.weight", 0),))})
    folded = apply(subject, edit)
    for name in ("first", "second"):
        assert not folded.tensors()[f"{name}.weight"][1].any()
    assert prove(subject, edit, folded, torch.randn(2, 3, 8, 8)) < 1e-6
