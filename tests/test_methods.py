"""What every method promises, whatever it does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from surgeon.data import extract
from surgeon.edit import Edit
from surgeon.methods import (
    CSAD,
    DFR,
    FFW,
    GBA,
    GBAC,
    GBAN,
    METHODS,
    VCBA,
    Adversarial,
    ClusterFix,
    CSADContent,
    CSADStructure,
    Finetune,
    GBAMask,
    GroupDRO,
    Leace,
    Magnitude,
    Method,
    Random,
)
from surgeon.methods.base import (
    device_changes,
    feature_scaling,
    new_edit,
    select_accuracy,
    select_loss,
    with_erasure,
    with_recalibration,
)

SEARCHES = ("ffw", "structured", "paper", "paper-structured")
ADVERSARIES = ("gba", "gba-n", "gba-c", "adversarial", "csad", "csad-content", "csad-struct")
TRAININGS = ("finetune", "group-dro", "vcba", "clusterfix", *ADVERSARIES)
NAMES = (*SEARCHES, *TRAININGS, "dfr", "dfr-paper", "leace", "gba-mask", "magnitude", "random")


def method(name, subject, seed=0):
    mask = torch.rand(12, 3, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.6
    like = new_edit(subject, "ffw", masks={"features.0.weight": mask})
    return {
        "ffw": FFW(epochs=2, seed=seed),
        "structured": FFW(mode="structured", epochs=2, seed=seed),
        "paper": FFW(recipe="paper", epochs=2, batch_size=16, seed=seed),
        "paper-structured": FFW(
            recipe="paper", mode="structured", epochs=2, batch_size=16, seed=seed
        ),
        "dfr": DFR(),
        "dfr-paper": DFR(recipe="paper", seed=seed),
        "leace": Leace(),
        "finetune": Finetune(epochs=1, seed=seed),
        "group-dro": GroupDRO(epochs=1, seed=seed),
        "vcba": VCBA(epochs=1, seed=seed),
        "gba": GBA(epochs=1, seed=seed),
        "gba-n": GBAN(epochs=1, seed=seed),
        "gba-c": GBAC(epochs=1, seed=seed),
        "adversarial": Adversarial(epochs=1, seed=seed),
        "csad": CSAD(epochs=1, seed=seed),
        "csad-content": CSADContent(epochs=1, seed=seed),
        "csad-struct": CSADStructure(epochs=1, seed=seed),
        "clusterfix": ClusterFix(epochs=1, clusters=2, seed=seed),
        "gba-mask": GBAMask(seed=seed),
        "magnitude": Magnitude(like=like, seed=seed),
        "random": Random(like=like, seed=seed),
    }[name]


class Unreadable:
    """Images that must not be asked for."""

    def batch(self, rows):
        raise AssertionError("report rows were read")


def sealed(data):
    """The data with report rows that cannot be read."""
    return replace(data, report=replace(data.report, images=Unreadable()))


def state(subject):
    modules = list(subject.net.named_modules())
    return [
        *((n, m.training, getattr(m, "momentum", None), len(m._forward_hooks)) for n, m in modules),
        *((n, p.requires_grad, p.grad is None) for n, p in subject.net.named_parameters()),
    ]


def tensors_of(edit):
    parts = {**edit.masks, **edit.buffers, **edit.updates}
    parts |= {f"unit {n}": u.keep for n, u in edit.units.items()}
    if edit.erasure is not None:
        parts |= {k: getattr(edit.erasure, k) for k in ("left", "right", "mean")}
    return parts


@pytest.mark.parametrize("name", NAMES)
def test_fit_changes_nothing_and_reads_no_report_row(name, small):
    subject, data = small.subject, sealed(small.data)
    with pytest.raises(AssertionError, match="report rows were read"):
        extract(subject, data.report)
    print_before, state_before = subject.fingerprint(), state(subject)
    random_before = torch.get_rng_state()
    records = []
    edit = method(name, subject).fit(subject, data, progress=records.append)
    assert isinstance(edit, Edit)
    assert (edit.base_sha256, edit.head.modules) == (subject.sha256, ("fc",))
    assert edit.method in METHODS
    assert subject.fingerprint() == print_before
    assert state(subject) == state_before
    assert torch.equal(torch.get_rng_state(), random_before)
    assert len(records) == (2 if name in SEARCHES else int(name in TRAININGS))
    for tensor in tensors_of(edit).values():
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
    assert not torch.equal(
        extract(subject, small.data.report, overrides=device_changes(subject, edit)).logits,
        extract(subject, small.data.report).logits,
    )


class Torn:
    """Images that go bad after some batches."""

    def __init__(self, images, good):
        self.images, self.left = images, good

    def batch(self, rows):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("image gone")
        return self.images.batch(rows)


@pytest.mark.parametrize(
    ("name", "good"),
    [*((name, 0) for name in NAMES), *((name, 3) for name in SEARCHES), ("structured", 5)],
)
def test_a_failing_fit_leaves_the_subject_as_it_was(name, good, small):
    subject = small.subject
    fit = replace(small.data.fit, images=Torn(small.data.fit.images, good))
    before = subject.fingerprint(), state(subject)
    with pytest.raises(RuntimeError, match="image gone"):
        method(name, subject).fit(subject, replace(small.data, fit=fit))
    assert (subject.fingerprint(), state(subject)) == before


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bytes_other_seed_another_edit(name, small, tmp_path, always_masked):
    contents = []
    for i, seed in enumerate((0, 0, 1)):
        edit = method(name, small.subject, seed).fit(small.subject, small.data)
        edit.save(tmp_path / str(i))
        contents.append((tmp_path / str(i)).read_bytes())
    assert contents[0] == contents[1]
    seeded = name not in ("dfr", "leace", "gba-mask")
    assert (contents[0] != contents[2]) == seeded


def test_registry_and_names():
    assert set(METHODS) == {"ffw", *NAMES} - {*SEARCHES[1:], "dfr-paper"}
    for name, kind in METHODS.items():
        assert kind.name == name
        assert issubclass(kind, Method)


def test_select_accuracy_is_the_mean_over_groups(small):
    groups = small.data.select.groups
    logits = nn.functional.one_hot(groups.target, 2).float()
    assert select_accuracy(logits, groups) == 1
    logits[groups.index == 2] = logits[groups.index == 2].flip(1)
    filled = int((groups.counts() > 0).sum())
    assert select_accuracy(logits, groups) == pytest.approx(1 - 1 / filled)


def test_recalibration_and_erasure_are_those_of_the_edited_network(toy):
    subject, data = toy.subject, toy.data
    mask = torch.ones(12, 3, 3, 3, dtype=torch.bool)
    mask[::2] = False
    edit = new_edit(subject, "ffw", masks={"features.0.weight": mask})
    settled = with_recalibration(subject, data, edit, seed=0)
    # A unit without weights has its additive term as mean and no variance.
    term = subject.tensors()["features.0.bias"]
    torch.testing.assert_close(settled.buffers["features.1.running_mean"][::2], term[::2])
    assert settled.buffers["features.1.running_var"][::2].abs().max() < 1e-10
    erased = with_erasure(subject, data, settled)
    outputs = extract(subject, data.fit, overrides=device_changes(subject, settled))
    weights = 1 / data.fit.groups.counts().double()[data.fit.groups.index]
    torch.testing.assert_close(
        erased.erasure.mean, (weights / weights.sum()) @ outputs.features.double()
    )


def test_select_loss_counts_groups_equally_and_forgives_sureness(small):
    groups = small.data.select.groups
    truth = one_hot(groups.target, groups.num_classes).double()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).double()
    logits = 2 * truth + 2 * noise
    loss = select_loss(logits, groups)
    assert 0.05 < loss < math.log(groups.num_classes)
    assert select_loss(10 * logits, groups) == pytest.approx(loss, rel=0.02)
    assert select_loss(-logits, groups) == pytest.approx(math.log(groups.num_classes), abs=0.05)
    # One group all wrong costs the same, whatever its size.
    counts = groups.counts()
    full = counts.nonzero().flatten().tolist()
    costs = []
    for group in full:
        wrong = (groups.index == group)[:, None]
        costs.append(select_loss(torch.where(wrong, -truth, 3 * truth), groups))
    assert max(costs) - min(costs) < 1e-9
    assert min(costs) > select_loss(3 * truth, groups) + 0.1


def test_features_that_never_vary_are_not_blown_up():
    features = torch.tensor([[1.0, 5.0, 1e-30], [3.0, 5.0, -1e-30]])
    mean, scale = feature_scaling(features)
    assert mean.tolist() == [2.0, 5.0, 0.0]
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert feature_scaling(features * 4)[1].tolist() == [4.0, 1.0, 1.0]
