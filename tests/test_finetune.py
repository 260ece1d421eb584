from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from surgeon.data import extract
from surgeon.errors import OptionError
from surgeon.methods import Finetune, training
from surgeon.methods.base import device_changes


def test_lowers_the_loss_and_replaces_every_parameter(toy):
    records = []
    edit = Finetune(epochs=8, lr=3e-3).fit(toy.subject, toy.data, progress=records.append)
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["task_loss"] < records[0]["task_loss"]
    parameters = dict(toy.subject.net.named_parameters())
    assert set(edit.updates) == set(parameters)
    moved = [n for n, value in edit.updates.items() if not torch.equal(value, parameters[n])]
    assert len(moved) == len(parameters)
    assert "features.1.running_mean" in edit.buffers
    assert not any([edit.masks, edit.units, edit.erasure])
    changes = device_changes(toy.subject, edit)
    target = toy.data.report.groups.target
    losses = [
        float(cross_entropy(extract(toy.subject, toy.data.report, overrides=o).logits, target))
        for o in (None, changes)
    ]
    assert losses[1] < losses[0]


def test_keeps_the_epoch_of_least_loss_on_select_rows(toy, monkeypatch):
    losses, reached = [0.3, 0.1, 0.2], []

    def judge(logits, groups):
        assert groups is toy.data.select.groups
        reached.append(logits)
        return losses[len(reached) - 1]

    monkeypatch.setattr(training, "select_loss", judge)
    edit = Finetune(epochs=3).fit(toy.subject, toy.data)
    changes = device_changes(toy.subject, edit)
    logits = extract(toy.subject, toy.data.select, overrides=changes).logits
    torch.testing.assert_close(logits, reached[1])
    assert not torch.allclose(logits, reached[2], atol=1e-3)


def test_refuses_steps_after_which_nothing_is_finite(toy):
    with pytest.raises(OptionError, match=r"--lr: found 1e\+30, the loss on select rows was"):
        Finetune(epochs=2, lr=1e30).fit(toy.subject, toy.data)


@pytest.mark.parametrize(
    ("losses", "given", "steps", "best"),
    [
        ([0.3, 0.1, 0.2], {}, [0.02], 1),
        ([0.2, 0.3, 0.6, 0.4, 0.3, 0.1], {}, [0.02, 0.01], 5),
        ([0.1, 0.3, 0.6, 0.4, 0.3, 0.2], {}, [0.02, 0.01], 0),
        ([0.2, 0.2, float("nan")] * 4, {}, [0.02, 0.01, 0.005, 0.0025], 0),
        ([0.2, 0.3, 0.6], {"lr": 0.02}, [0.02], 0),
    ],
)
def test_a_training_that_breaks_the_network_is_run_again_with_half_the_step(
    toy, monkeypatch, losses, given, steps, best
):
    reached, records = [], []

    def judge(logits, groups):
        reached.append(logits)
        return losses[len(reached) - 1]

    monkeypatch.setattr(training, "select_loss", judge)
    edit = Finetune(epochs=3, **given).fit(toy.subject, toy.data, progress=records.append)
    assert [record["lr"] for record in records] == [step for step in steps for _ in range(3)]
    assert [record["epoch"] for record in records] == list(range(1, len(losses) + 1))
    changes = device_changes(toy.subject, edit)
    logits = extract(toy.subject, toy.data.select, overrides=changes).logits
    torch.testing.assert_close(logits, reached[best])
