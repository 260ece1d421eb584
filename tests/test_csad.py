"""Pairs of images: what their target and bias features have in common, and how it is removed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from surgeon.data import extract
from surgeon.methods import CSAD, CSADContent, CSADStructure, Finetune
from surgeon.methods.base import device_changes
from surgeon.methods.csad import _Branch
from surgeon.probes import Prober

KINDS = (CSAD, CSADContent, CSADStructure)


@pytest.fixture
def branches(monkeypatch):
    """Collect the branches that are made."""
    made = []
    original = _Branch.__init__

    def remember(self, *args, **options):
        original(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(_Branch, "__init__", remember)
    return made


def values(branch):
    parts = (branch.reader, branch.predictor, branch.estimator)
    return [value.detach().clone() for part in parts for value in part.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_from_its_own_loss_alone(toy, pass_of, branches, kind):
    rows = torch.arange(60)
    seen, weights = pass_of(toy, rows)
    before = {name: value.detach().clone() for name, value in weights.items()}
    loss_of = kind().new_objective(toy.subject, toy.data).loss
    (branch,) = branches
    started = values(branch)
    twin = copy.deepcopy(branch)
    bias = toy.data.fit.groups.biases[rows, 0]
    for _ in range(10):
        twin.step(seen.features, bias)
    read = values(twin)
    for _ in range(10):
        twin.step_estimator(seen.features, bias)
    # The estimator's steps leave branch and predictor alone, the branch's the estimator.
    count = len([*branch.reader.parameters(), *branch.predictor.parameters()])
    own = values(twin)
    assert all(torch.equal(a, b) for a, b in zip(own[:count], read[:count], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(read[count:], started[count:], strict=True))
    loss, figures = loss_of(seen)
    assert all(torch.equal(a, b) for a, b in zip(values(branch), own, strict=True))
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    for part in (branch.reader, branch.predictor, branch.estimator):
        part.zero_grad()
        assert all(value.requires_grad for value in part.parameters())
    loss.backward(retain_graph=True)
    for part in (branch.reader, branch.predictor, branch.estimator):
        assert all(value.grad is None for value in part.parameters())
    # The head learns the task alone, the encoder the information too.
    task = cross_entropy(seen.logits, toy.data.fit.groups.target[rows])
    grads = torch.autograd.grad(task, list(weights.values()))
    assert float(figures["bias_term"]) > 0
    for (name, weight), grad in zip(weights.items(), grads, strict=True):
        assert torch.equal(weight.grad, grad) == name.startswith("fc.")


def test_the_estimator_learns_to_tell_pairs(toy):
    rows, groups = toy.data.fit, toy.data.fit.groups
    features = extract(toy.subject, rows).features
    torch.manual_seed(0)
    bias, told = groups.biases[:, 0], []
    for labels in (bias, bias[torch.randperm(len(bias))]):
        branch = _Branch(features, 2, content=True, structure=True)
        for _ in range(150):
            picked = torch.randint(200, (50,))
            branch.step(features[picked], labels[picked])
            branch.step_estimator(features[picked], labels[picked])
        with torch.no_grad():
            told.append(float(branch.information(features[200:], labels[200:])))
    assert told[0] > told[1] + 0.01
    assert told[1] < 0.01


def test_the_information_falls_by_its_own_gradient(toy, worst_group, monkeypatch):
    original, ends = _Branch.information, []
    for gradient, epochs in ((True, 10), (False, 3)):
        if not gradient:
            monkeypatch.setattr(_Branch, "information", lambda *a: original(*a).detach())
        records = []
        edit = CSAD(epochs=epochs).fit(toy.subject, toy.data, progress=records.append)
        assert records[0]["bias_term"] > 0.5
        ends.append(records[-1]["bias_term"])
    assert ends[0] < 0.3
    assert ends[1] > 0.7
    assert worst_group(toy, edit) > 0.85


@pytest.mark.slow
@pytest.mark.usefixtures("small_steps")
def test_the_bias_is_harder_to_read_and_the_target_survives(toy, worst_group):
    rows, prober = toy.data.report, Prober(seed=0)
    read = []
    for kind in (Finetune, CSADStructure):
        edit = kind(epochs=40, lr=1e-3).fit(toy.subject, toy.data)
        changes = device_changes(toy.subject, edit)
        features = extract(toy.subject, rows, overrides=changes).features
        bias = rows.groups.biases[:, 0]
        score = prober.score(features, rows.groups.target, bias, 2, 2, "linear")
        read.append(score.accuracy)
        assert worst_group(toy, edit) > 0.8
    assert read[0] > 0.9
    assert read[1] < read[0] - 0.1
