"""Rows of clusters that fare badly weigh more; no bias label is read."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import pytest
import torch

from surgeon.data import extract
from surgeon.errors import OptionError
from surgeon.methods import ClusterFix, Finetune
from surgeon.methods.clusterfix import _ClusterHeads, _Weights


def test_weights_follow_the_losses_of_the_clusters():
    clusters = torch.tensor([0, 0, 0, 1, 1, 2])
    losses = [0.5, 0.7, 0.1, 2.0, 1.0, 0.3]
    found = _Weights(torch.tensor(losses), clusters)
    weights = [1.0] * 6
    for rows, new in (([0, 3, 5], [0.4, 3.0, 0.2]), ([3, 1], [1.5, 0.9]), ([5], [4.0])):
        for row, value in zip(rows, new, strict=True):
            losses[row] = value
        own = [[losses[i] for i in range(6) if clusters[i] == c] for c in range(3)]
        means = [sum(part) / len(part) for part in own]
        due = [6 / len(own[clusters[r]]) * means[clusters[r]] / sum(means) for r in rows]
        for row, value in zip(rows, due, strict=True):
            weights[row] = 0.7 * weights[row] + 0.3 * value / (sum(due) / len(due))
        drawn = [weights[row] for row in rows]
        expected = [value / (sum(drawn) / len(drawn)) for value in drawn]
        step = found.follow(torch.tensor(rows), torch.tensor(new))
        assert step.tolist() == pytest.approx(expected, rel=1e-5)


def test_each_row_goes_to_the_head_of_its_class():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    target, cluster = torch.tensor([0, 2, 1, 2, 0]), torch.tensor([1, 0, 3, 2, 1])
    heads = _ClusterHeads(x, 3, 4)
    logits = heads.net(x)
    expected = [
        -logits[i, 4 * t : 4 * t + 4].log_softmax(0)[c]
        for i, (t, c) in enumerate(zip(target.tolist(), cluster.tolist(), strict=True))
    ]
    torch.testing.assert_close(heads.losses(x, target, cluster), torch.stack(expected))


def test_heads_and_network_learn_from_their_own_losses(toy, pass_of, monkeypatch):
    made = []
    original = _ClusterHeads.__init__

    def remember(self, *args):
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(_ClusterHeads, "__init__", remember)
    rows = torch.arange(60)
    seen, weights = pass_of(toy, rows)
    before = {name: value.detach().clone() for name, value in weights.items()}
    loss_of = ClusterFix(gamma=0.5).new_objective(toy.subject, toy.data).loss
    (heads,) = made
    start = copy.deepcopy(heads.net.state_dict())
    loss, _ = loss_of(seen)
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    learned = copy.deepcopy(heads.net.state_dict())
    assert not torch.equal(learned["weight"], start["weight"])
    heads.net.zero_grad()
    loss.backward(retain_graph=True)
    assert all(not p.grad.any() for p in heads.net.parameters() if p.grad is not None)
    assert all(torch.equal(heads.net.state_dict()[name], value) for name, value in learned.items())
    # The clusters' loss reaches the encoder and not the head of the network.
    seen, weights = pass_of(toy, rows)
    target = toy.data.fit.groups.target[rows]
    told = heads.losses(seen.features, target, torch.zeros_like(target)).mean()
    names = list(weights)
    grads = torch.autograd.grad(told, list(weights.values()), allow_unused=True)
    reached = {name for name, grad in zip(names, grads, strict=True) if grad is not None}
    assert reached == {name for name in names if not name.startswith("fc.")}


def test_bias_labels_are_not_read(toy, lopsided):
    def shuffled(rows, seed):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return replace(rows, groups=replace(rows.groups, biases=rows.groups.biases[order]))

    blind = replace(lopsided, fit=shuffled(lopsided.fit, 0), select=shuffled(lopsided.select, 1))
    first, second = (
        ClusterFix(epochs=3, lr=3e-4).fit(toy.subject, data) for data in (lopsided, blind)
    )
    assert all(torch.equal(second.updates[name], value) for name, value in first.updates.items())
    with pytest.raises(OptionError, match="--balance: found 'groups', expected none"):
        ClusterFix(balance="groups")


@pytest.mark.usefixtures("small_steps")
def test_rows_against_the_bias_gain(toy, lopsided, worst_group):
    settings = {"epochs": 8, "lr": 3e-4}
    plain = Finetune(balance="none", **settings).fit(toy.subject, lopsided)
    weighed = {"gamma": 0.5, **settings}
    edit = ClusterFix(**weighed).fit(toy.subject, lopsided)
    assert worst_group(toy, edit) > worst_group(toy, plain) + 0.05
    # One cluster per class tells no rows of a class apart.
    alike = ClusterFix(clusters=1, **weighed).fit(toy.subject, lopsided)
    assert worst_group(toy, edit) > worst_group(toy, alike) + 0.05


def test_the_settings_say_what_is_used():
    found = [
        asdict(method.settings())
        for method in (ClusterFix(), ClusterFix(recipe="paper"), ClusterFix(clusters=3, gamma=0.0))
    ]
    assert [(own["clusters"], own["gamma"]) for own in found] == [(4, 0.02), (8, 0.5), (3, 0.0)]


def test_clusters_are_of_the_given_features(toy, lopsided):
    objective = ClusterFix(clusters=4).new_objective(toy.subject, lopsided)
    groups = objective.data.select.groups
    assert (groups.columns, groups.num_groups) == (("cluster",), 8)
    # Rows of a class and a colour lie together.
    features = extract(toy.subject, lopsided.select).features
    assert len(features) == len(groups)
    colour = lopsided.select.groups.biases[:, 0]
    counts = torch.bincount(groups.index * 2 + colour, minlength=16).view(8, 2)
    assert float(counts.max(1).values.sum() / len(groups)) > 0.9
