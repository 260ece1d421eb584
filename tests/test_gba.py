"""The adversary learns the bias, the network unlearns it, and features drop by its gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from surgeon.data import extract
from surgeon.methods import GBA, GBAC, GBAN, Adversarial, gba
from surgeon.methods.gba import _Discriminator

KINDS = (Adversarial, GBA, GBAN, GBAC)


def test_which_features_drop():
    gradients = torch.tensor([[2.0, -1.0, 0.0], [2.0, -1.0, 0.0]])
    right = torch.tensor([[True], [False]])
    dropped = {kind.name: kind().strikes(gradients, right).int().tolist() for kind in (KINDS)}
    assert dropped == {
        "adversarial": [[0, 0, 0], [0, 0, 0]],
        "gba": [[1, 0, 0], [0, 1, 0]],
        "gba-n": [[1, 0, 0], [1, 0, 0]],
        "gba-c": [[1, 0, 0], [0, 0, 0]],
    }


@pytest.fixture
def opponent(toy):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Discriminator(extract(toy.subject, toy.data.fit).features, 2)


def test_gradients_are_of_the_winning_margin(toy, opponent):
    x = extract(toy.subject, toy.data.fit).features[:60]
    gradients, found = opponent.gradients(x)
    logits = opponent.net(x)
    assert torch.equal(found, logits.argmax(1))
    assert found.unique().tolist() == [0, 1]
    step = 1e-3
    for row, feature in ((int(found.argmin()), 3), (int(found.argmax()), 20)):
        ends = []
        for sign in (1, -1):
            moved = x[row : row + 1].clone()
            moved[0, feature] += sign * step
            (out,) = opponent.net(moved).detach()
            ends.append(float(out[found[row]] - out.mean()))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(gradients[row, feature]) == pytest.approx(slope, abs=1e-3)
    # A shift of every logit alike changes nothing.
    with torch.no_grad():
        opponent.net[-1].weight += torch.arange(24) / 24
    torch.testing.assert_close(opponent.gradients(x)[0], gradients)


def test_to_mislead_the_adversary_is_no_gain(toy, opponent):
    x = extract(toy.subject, toy.data.fit).features[:60].requires_grad_()
    bias = opponent.net(x).argmax(1)
    misled = torch.arange(60) < 20
    bias[misled] = 1 - bias[misled]
    loss = opponent.loss(x, bias)
    loss.backward()
    moved = x.grad.abs().sum(1) > 0
    assert torch.equal(moved, ~misled)
    right = cross_entropy(opponent.net(x), bias, reduction="none").detach()[~misled]
    expected = float(right.sum() + 20 * math.log(2)) / 60
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def opponents(monkeypatch):
    """Collect the discriminators that are made."""
    made = []
    original = _Discriminator.__init__

    def remember(self, *args):
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(_Discriminator, "__init__", remember)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_from_its_own_loss_alone(toy, pass_of, opponents, kind):
    rows = torch.arange(80)
    seen, weights = pass_of(toy, rows, passed=1.0)
    before = {name: value.detach().clone() for name, value in weights.items()}
    loss_of = kind().new_objective(toy.subject, toy.data).loss
    (opponent,) = opponents
    twin = copy.deepcopy(opponent)
    bias, target = toy.data.fit.groups.biases[rows, 0], toy.data.fit.groups.target[rows]
    twin.step(seen.features, bias)
    loss, figures = loss_of(seen)
    assert seen.features.grad_fn is not None
    own = [value.detach().clone() for value in opponent.net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(own, twin.net.parameters(), strict=True))
    opponent.net.zero_grad()
    loss.backward(retain_graph=True)
    # The network's loss reaches no parameter of the adversary, and the call moved no weight.
    assert all(not p.grad.any() for p in opponent.net.parameters() if p.grad is not None)
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    # The head learns the task alone; the encoder the task less the bias.
    gradients, found = twin.gradients(seen.features)
    keep = ~kind().strikes(gradients, (found == bias)[:, None])
    features = seen.features * keep / keep.float().mean(1, keepdim=True)
    task = cross_entropy(seen.head(features), target)
    each = cross_entropy(twin.net(seen.features), bias, reduction="none")
    reversed_ = each.clamp_max(math.log(2)).mean()
    names = list(weights)
    of_task = torch.autograd.grad(task, list(weights.values()), retain_graph=True)
    of_both = torch.autograd.grad(
        task - (2 / (1 + torch.tensor(-10.0).exp()) - 1) * reversed_, list(weights.values())
    )
    for name, one, both in zip(names, of_task, of_both, strict=True):
        expected = one if name.startswith("fc.") else both
        torch.testing.assert_close(weights[name].grad, expected)
        assert name.startswith("fc.") or not torch.allclose(one, both)
    assert float(figures["task_loss"]) == pytest.approx(float(task.detach()), rel=1e-5)
    size = seen.features.detach().abs()
    assert float(figures["kept"]) == pytest.approx(float((size * keep).sum() / size.sum()))


def test_the_adversary_is_fooled_and_the_target_survives(toy, worst_group, monkeypatch):
    losses = []
    for ramp in (0.0, 10.0):
        monkeypatch.setattr(gba, "_RAMP", ramp)
        records = []
        edit = Adversarial(epochs=12).fit(toy.subject, toy.data, progress=records.append)
        losses.append([record["adversarial_loss"] for record in records])
        assert worst_group(toy, edit) > 0.9
    # At most the entropy of the bias.
    assert losses[0][-1] < 0.3
    assert 0.5 < max(losses[1]) <= math.log(2)
