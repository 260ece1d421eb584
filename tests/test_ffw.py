from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from surgeon.data import extract
from surgeon.dependence import hsic, scatter, within_classes
from surgeon.methods import DFR, FFW
from surgeon.methods.base import (
    device_changes,
    new_edit,
    select_loss,
    with_erasure,
    with_recalibration,
)
from surgeon.methods.refit import with_new_head
from surgeon.methods.search import Search
from surgeon.metrics import group_accuracies
from surgeon.probes import Prober
from surgeon.sites import bottleneck_sites, weight_sites
from surgeon.surgery import apply, sparsity

PROBER = Prober(seed=0)


@cache
def figures(toy, edit=None):
    """Worst group, mean over groups, leakage of features and of logits; on report rows."""
    rows = toy.data.report
    changes = device_changes(toy.subject, edit) if edit else None
    outputs = extract(toy.subject, rows, overrides=changes)
    groups = rows.groups
    right = outputs.logits.argmax(1) == groups.target
    accuracies = group_accuracies(right, groups.index, groups.num_groups)
    leaks = [
        PROBER.score(x, groups.target, groups.biases[:, 0], 2, 2, "linear").accuracy
        for x in (outputs.features, outputs.logits)
    ]
    return float(accuracies.min()), float(accuracies.mean()), *leaks


@cache
def fitted(toy, mode):
    return FFW(mode=mode).fit(toy.subject, toy.data)


def test_the_toy_leans_on_its_colour(toy):
    worst, mean, features, logits = figures(toy)
    assert worst < 0.7
    assert mean > 0.8
    assert features > 0.95
    assert logits > 0.7


@pytest.mark.parametrize("mode", ["unstructured", "structured"])
def test_the_lean_goes_and_the_task_stays(toy, mode):
    edit = fitted(toy, mode)
    worst, mean, _, logits = figures(toy, edit)
    assert worst > figures(toy)[0] + 0.2
    assert worst > 0.88
    assert mean > 0.93
    assert 0.42 < logits < 0.58
    counted = sparsity(toy.subject, edit)
    assert 0.1 < counted.gated < 0.9
    assert counted.units == pytest.approx({"unstructured": 0.75, "structured": 0.4}[mode], abs=0.05)
    assert set(edit.buffers) == {
        f"features.{i}.{kind}" for i in (1, 5, 9) for kind in ("running_mean", "running_var")
    }
    assert set(edit.updates) == {"fc.weight", "fc.bias"}
    folded = apply(toy.subject, edit)
    x = toy.data.report.batch(torch.arange(50))
    expected = toy.subject.forward(x, edit.changes(toy.subject.tensors()))[1]
    torch.testing.assert_close(folded.forward(x)[1], expected)


@pytest.mark.parametrize("mode", ["unstructured", "structured"])
def test_the_mask_does_its_part_without_the_erasure(toy, mode):
    edit = fitted(toy, mode).without("erasure")
    opened = new_edit(toy.subject, "ffw")
    only = with_erasure(toy.subject, toy.data, opened)
    assert figures(toy, edit)[0] > figures(toy)[0] + 0.2
    assert figures(toy, edit)[0] > figures(toy, only)[0]
    assert figures(toy, only)[3] < figures(toy)[3] - 0.1


@pytest.mark.parametrize("mode", ["unstructured", "structured"])
def test_the_published_recipe_moves_its_gates(toy, mode):
    records = []
    method = FFW(recipe="paper", mode=mode, epochs=3)
    edit = method.fit(toy.subject, toy.data, progress=records.append)
    assert sparsity(toy.subject, edit).gated > 0.2
    assert not edit.buffers
    assert edit.erasure is None
    assert len(records) <= 3
    assert all(0 <= r["bias_term"] <= 1 for r in records)
    assert records[-1]["sparsity"] == sparsity(toy.subject, edit).gated
    settings = method.settings()
    assert (settings.gamma, settings.lr, settings.batch_size) == (10, 1e-3, 100)
    assert FFW(recipe="paper").settings().epochs == 200
    for unit, kept in edit.units.items():
        assert {fold.parameter for fold in kept.folds} == {f"{unit}.weight", f"{unit}.bias"}


@pytest.mark.parametrize("recalibrate", [True, False])
def test_parts_can_be_left_out(small, recalibrate, always_masked):
    method = FFW(epochs=1, recalibrate=recalibrate, erase_head=not recalibrate, gate_head=True)
    edit = method.fit(small.subject, small.data)
    assert bool(edit.buffers) == recalibrate
    assert (edit.erasure is None) == recalibrate
    assert "fc.weight" in edit.masks
    if recalibrate:
        again = with_recalibration(small.subject, small.data, edit, seed=0)
        assert all(torch.equal(again.buffers[n], edit.buffers[n]) for n in edit.buffers)


def test_a_mask_that_loses_to_a_new_head_is_left_out(toy):
    short = FFW(epochs=1, lr=1e-6).fit(toy.subject, toy.data)
    erased = with_erasure(toy.subject, toy.data, new_edit(toy.subject, "ffw"))
    alone = with_new_head(toy.subject, toy.data, erased)
    assert not short.masks
    assert not short.buffers
    assert all(torch.equal(short.updates[name], alone.updates[name]) for name in alone.updates)
    assert short.erasure is not None
    assert fitted(toy, "unstructured").masks


def test_a_refitted_head_ends_the_operation(toy):
    edit = FFW(epochs=5, refit_head=True, erase_head=False).fit(toy.subject, toy.data)
    again = DFR().fit(apply(toy.subject, edit.without("updates")), toy.data)
    assert edit.masks
    for name, value in again.updates.items():
        torch.testing.assert_close(edit.updates[name], value)


def test_select_rows_choose_between_its_own_head_and_a_new_one(toy):
    own, new, chosen = (
        FFW(epochs=2, gamma=0.1, refit_head=flag).fit(toy.subject, toy.data)
        for flag in (False, True, None)
    )

    def loss(edit):
        changes = device_changes(toy.subject, edit)
        logits = extract(toy.subject, toy.data.select, overrides=changes).logits
        return select_loss(logits, toy.data.select.groups)

    assert all(torch.equal(own.masks[n], e.masks[n]) for e in (new, chosen) for n in own.masks)
    assert loss(own) != loss(new)
    assert loss(chosen) == min(loss(own), loss(new))


def test_a_head_refitted_behind_the_erasure_reads_nothing_of_what_it_removes(toy):
    edit = with_erasure(toy.subject, toy.data, new_edit(toy.subject, "ffw"))
    edit = with_new_head(toy.subject, toy.data, edit)
    plain = DFR().fit(toy.subject, toy.data)
    read = [e.updates["fc.weight"].double() @ edit.erasure.left for e in (edit, plain)]
    assert read[0].abs().max() < 1e-4 < 1e-2 < read[1].abs().max()
    x = toy.data.report.batch(torch.arange(50))
    both = edit, edit.without("erasure")
    with_it, without = (apply(toy.subject, e).forward(x)[1] for e in both)
    torch.testing.assert_close(with_it, without, rtol=1e-4, atol=1e-4)


def test_own_values_go_over_the_recipe():
    settings = FFW(gamma=7.5, epochs=3, lr=0.5, batch_size=9, erase_head=False).settings()
    assert (settings.gamma, settings.epochs, settings.lr, settings.batch_size) == (7.5, 3, 0.5, 9)
    assert not settings.erase_head
    assert FFW(gamma=0.0).settings().gamma == 0


def first_step(toy, settings):
    """What one step of a search gives, and the gradients of its loss worked out beside it."""
    search = Search(toy.subject, toy.data, weight_sites(toy.subject), settings, seed=0)
    x, rows = toy.data.fit.batch(torch.arange(100)), toy.data.fit.groups
    target, bias = rows.target[:100], rows.biases[:100, 0]
    features, logits = toy.subject.forward(x, search.gates.overrides())
    loss = nn.functional.cross_entropy(logits, target)
    loss = loss + settings.gamma * search.bias_term(features, [bias])
    loss = loss + search.scatter_weight * scatter(features, target, 2)
    inside = within_classes(features, target, 2)
    loss = loss + settings.within * hsic(inside, bias)
    expected = torch.autograd.grad(loss, search.gates.logits)
    return search, expected, lambda: search.step(x, target, [bias], {})


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("gamma", [0.0, 40.0])
def test_gates_follow_task_and_bias_term(toy, gamma, recipe):
    settings = FFW(gamma=gamma, recipe=recipe).settings()
    search, expected, step = first_step(toy, settings)
    _, told = step()
    for logit, grad in zip(search.gates.logits, expected, strict=True):
        torch.testing.assert_close(logit.grad, grad)
    assert 0.1 < float(told) <= 1


def test_steps_rise_for_a_tenth_of_the_search_and_fall_to_nothing(toy):
    settings = FFW(epochs=10).settings()
    search = Search(toy.subject, toy.data, weight_sites(toy.subject), settings, seed=0)
    steps = settings.epochs * -(-len(toy.data.fit) // search.batch_size)
    paces = [search._pace(step) for step in range(steps + 1)]
    top = paces.index(max(paces))
    assert paces[0] < 0.2
    assert paces[: top + 1] == sorted(paces[: top + 1])
    assert 0.05 * steps <= top <= 0.15 * steps
    assert paces[top:] == sorted(paces[top:], reverse=True)
    assert paces[-1] == pytest.approx(0, abs=1e-9)


def test_features_enough_for_classes_and_biases_stay(planted):
    settings = replace(FFW().settings(), units_off=1.0)
    sites = FFW().sites(planted.subject)
    search = Search(planted.subject, planted.data, sites, settings, seed=0)
    (made,) = bottleneck_sites(planted.subject)
    assert search.closing is not None
    search.closing.step(0.5)
    # Two directions for three classes, two for three values of the bias, all that twice.
    assert int((search.gates.logits[search.gates.sites.index(made)] >= 0).sum()) == 8
    assert made.shape == (24,)


def test_classes_are_drawn_together_less_where_the_bias_goes_with_them(toy, rows_of):
    settings = FFW().settings()
    weights = []
    for lean in (0.5, 0.9, 1.0):
        generator = torch.Generator().manual_seed(0)
        x, target = torch.zeros(200, 3, 8, 8), torch.arange(200) % 2
        bias = torch.where(torch.rand(200, generator=generator) < lean, target, 1 - target)
        data = rows_of(dict.fromkeys(("fit", "select", "report"), (x, target, bias)))
        search = Search(toy.subject, data, weight_sites(toy.subject), settings, seed=0)
        weights.append(search.scatter_weight)
    assert settings.scatter >= weights[0] > 0.9 * settings.scatter
    assert 0.2 * settings.scatter < weights[1] < 0.5 * settings.scatter
    assert weights[2] == pytest.approx(0, abs=1e-6)


def test_bias_heads_follow_their_own_loss(toy):
    search, _, step = first_step(toy, FFW(recipe="paper").settings())
    (head,) = search.bias_term.heads
    before = head.weight.clone()
    step()
    assert not head.weight.requires_grad
    assert not torch.equal(head.weight, before)


class Unused(nn.Module):
    """A network with a layer that its forward pass never calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.spare = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_a_layer_never_called_is_kept(pico, small, always_masked):
    subject = pico(Unused, 12)
    edit = FFW(epochs=1).fit(subject, small.data)
    assert edit.masks["spare.weight"].all()
    assert not edit.buffers


def test_every_fitted_bias_is_erased_and_no_audited_one(toy, rows_of, always_masked):
    data = toy.data
    parts = {}
    for name in ("fit", "select", "report"):
        rows = getattr(data, name)
        x = rows.batch(torch.arange(len(rows))).clone()
        generator = torch.Generator().manual_seed(len(rows))
        second = torch.randint(2, (len(rows),), generator=generator)
        x[:, 1] += 0.3 * second[:, None, None]
        parts[name] = x, rows.groups.target, torch.stack([rows.groups.biases[:, 0], second], 1)
    both = rows_of(parts)
    edit = FFW(epochs=2).fit(toy.subject, both)
    assert edit.erasure.left.shape[1] == 2
    audited = {
        name: replace(rows, groups=replace(rows.groups, audited=("bias1",)))
        for name, rows in (("fit", both.fit), ("select", both.select))
    }
    one = FFW(epochs=2).fit(toy.subject, replace(both, **audited))
    assert one.erasure.left.shape[1] == 1
    # The audited column plays no part in the search either.
    alone = {name: (x, y, b[:, 0]) for name, (x, y, b) in parts.items()}
    single = FFW(epochs=2).fit(toy.subject, rows_of(alone))
    assert all(torch.equal(one.masks[name], single.masks[name]) for name in one.masks)


SCRIPT = """
import sys
from pathlib import Path
import torch, surgeon
torch.set_num_threads(1)
folder, out = map(Path, sys.argv[1:])
subject = surgeon.load(folder)
data = surgeon.read_data(subject, folder / "val.csv", bias_cols=("bias", "age"), workers=1)
edit = surgeon.FFW(epochs=1).fit(subject, data)
surgeon.export(subject, edit, out, images=data.report.batch(torch.arange(len(data.report))))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tiny, tmp_path):
    outs = [tmp_path / seed for seed in ("1", "2")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, tiny, out],
            env={**os.environ, "PYTHONHASHSEED": out.name, "OMP_NUM_THREADS": "1"},
        )
        for out in outs
    ]
    assert [process.wait() for process in running] == [0, 0]
    names = sorted(path.name for path in outs[0].iterdir())
    assert {"edit.safetensors", "model.safetensors", "report_logits.safetensors"} <= set(names)
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
