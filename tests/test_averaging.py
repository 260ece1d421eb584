from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from surgeon.data import extract
from surgeon.methods import Finetune
from surgeon.methods.averaging import Average
from surgeon.methods.base import device_changes, select_loss
from surgeon.methods.regime import Regime
from surgeon.recalibrate import recalibrate


class Averaged(Finetune):
    default: ClassVar[Regime] = replace(Finetune.default, average=0.5)


def exponential(values, steps):
    average = values[0]
    for value in values[1:]:
        average = average + (value - average) / steps
    return average


def test_counts_a_step_the_less_the_longer_it_is_past():
    weight = torch.tensor([1.0, -2.0])
    average = Average({"w": weight}, 4.0)
    for _ in range(7):
        weight.mul_(1.5)
        average.follow()
    values = [torch.tensor([1.0, -2.0]) * 1.5**n for n in range(8)]
    torch.testing.assert_close(average.tensors["w"], exponential(values, 4.0))
    assert torch.equal(weight, values[-1])


def test_of_less_than_a_step_is_the_last():
    weight = torch.randn(5)
    average = Average({"w": weight}, 0.5)
    weight.add_(1.7)
    average.follow()
    assert torch.equal(average.tensors["w"], weight)


def test_training_keeps_the_average_with_statistics_of_its_own(toy, monkeypatch):
    name, values, records = "features.0.weight", [], []
    follow = Average.follow

    def followed(self):
        follow(self)
        values.append(self._followed[list(self.tensors).index(name)].clone())

    monkeypatch.setattr(Average, "follow", followed)
    method = Averaged(epochs=1, lr=0.02, batch_size=40)
    edit = method.fit(toy.subject, toy.data, progress=records.append)
    steps = 0.5 * len(toy.data.fit) / 40
    assert len(values) == 2 * steps
    expected = exponential([toy.subject.tensors()[name], *values], steps)
    torch.testing.assert_close(edit.updates[name], expected)
    logits = extract(
        toy.subject, toy.data.select, overrides=device_changes(toy.subject, edit)
    ).logits
    found = select_loss(logits, toy.data.select.groups)
    assert found == pytest.approx(records[0]["select_loss"], abs=1e-9)
    # A draw of the rows of its own: near the statistics of all rows, far from the given ones.
    batches = (x for _, x in toy.data.fit.epoch(40, torch.Generator().manual_seed(0)))
    measured = recalibrate(toy.subject, batches, edit.updates)
    assert set(edit.buffers) == set(measured)
    mean = "features.1.running_mean"
    off = (edit.buffers[mean] - measured[mean]).norm()
    assert off < 0.2 * (toy.subject.tensors()[mean] - measured[mean]).norm()
