"""Rows that go against the bias weigh more, and tell nothing of it any more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

import surgeon
from surgeon.bias_head import BiasHead
from surgeon.data import Rows, extract
from surgeon.dependence import hsic, scatter, within_classes
from surgeon.errors import LabelError, OptionError
from surgeon.groups import Groups
from surgeon.methods import VCBA, Finetune
from surgeon.methods.base import device_changes
from surgeon.methods.regime import Regime
from surgeon.methods.vcba import _pulls, _Reader, row_weights
from surgeon.mutual_information import mutual_information


def test_both_kinds_of_rows_of_a_bias_value_weigh_the_same(lopsided):
    groups = lopsided.fit.groups
    bias, aligned = groups.biases[:, 0], groups.biases[:, 0] == groups.target
    weights = row_weights(groups, aligned[:, None], "val.csv")
    assert float(weights.mean()) == pytest.approx(1)
    for value in (0, 1):
        sums = [float(weights[(bias == value) & kind].sum()) for kind in (aligned, ~aligned)]
        assert sums[0] == pytest.approx(sums[1])
    # By hand: rho of a value is 10 / 11 or so, and its rows weigh 1.1 and 11 before scaling.
    share = float(aligned[bias == 0].float().mean())
    first = weights[(bias == 0) & ~aligned][0] / weights[(bias == 0) & aligned][0]
    assert float(first) == pytest.approx(share / (1 - share))


def test_a_bias_value_with_one_kind_of_rows_is_named(toy, lopsided):
    fit = lopsided.fit
    gone = (fit.groups.biases[:, 0] == 1) & (fit.groups.target == 0)
    kept = (~gone).nonzero().flatten()
    bare = replace(lopsided, fit=Rows(fit.images, fit.groups.take(kept), fit.index[kept]))
    with pytest.raises(LabelError, match="1 bias values with one kind of rows") as error:
        VCBA(epochs=1).fit(toy.subject, bare)
    count = int((bare.fit.groups.biases[:, 0] == 1).sum())
    assert f"bias '1': all {count} fit rows are aligned" in str(error.value)
    never = torch.zeros(len(fit), 1, dtype=torch.bool)
    with pytest.raises(LabelError, match=r"bias '0': all \d+ fit rows are misaligned"):
        row_weights(fit.groups, never, "val.csv")


def test_a_bias_value_that_no_row_goes_against_weighs_one():
    # Of three colours the last is seen on its own class alone; each class has both kinds.
    target = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    bias = torch.tensor([0, 1, 1, 0, 2, 2, 2, 0])
    names = ("a", "b", "c")
    groups = Groups(target, bias[:, None], names, ("bias",), (names,))
    weights = row_weights(groups, (bias == target)[:, None], "val.csv")
    # rho: 1 of 3 rows of colour 0, 1 of 2 of colour 1, all 3 of colour 2.
    expected = torch.tensor([3.0, 2.0, 2.0, 1.5, 1.0, 1.0, 1.0, 1.5])
    torch.testing.assert_close(weights, expected / expected.mean())


def test_rows_drawn_by_groups_would_weigh_twice():
    with pytest.raises(OptionError, match="--balance: found 'groups', expected none"):
        VCBA(balance="groups")


@pytest.fixture
def reading(toy, lopsided):
    """Features, groups, the misaligned rows, and a reader whose head stays as it is."""
    features, groups = extract(toy.subject, lopsided.fit).features, lopsided.fit.groups
    misaligned = groups.biases[:, 0] != groups.target

    def make(batch_size):
        ones = torch.ones(len(groups))
        reader = _Reader(features, groups, 0, misaligned, ones, Regime(batch_size=batch_size))
        generator = torch.Generator().manual_seed(0)
        reader.head.weight += 0.5 * torch.randn(reader.head.weight.shape, generator=generator)
        reader.head.step = lambda *_: None
        return reader

    return features, groups, misaligned, make


def test_of_all_rows_at_once_it_is_the_information_of_the_misaligned(reading):
    features, groups, misaligned, make = reading
    reader = make(len(groups))
    x = features.clone().requires_grad_()
    told = reader(x, torch.arange(len(groups)))
    y = features[misaligned].clone().requires_grad_()
    expected = mutual_information(reader.head(y), groups.biases[misaligned, 0], 2)
    torch.testing.assert_close(told, expected)
    told.backward()
    expected.backward()
    assert float(y.grad.abs().max()) > 1e-4
    torch.testing.assert_close(x.grad[misaligned], y.grad)
    assert not bool(x.grad[~misaligned].any())


def test_batches_of_an_epoch_add_up_to_the_whole(reading):
    features, groups, misaligned, make = reading
    whole, reader, size = make(len(groups)), make(11), 11
    x = features.clone().requires_grad_()
    whole(x, torch.arange(len(groups))).backward()
    generator = torch.Generator().manual_seed(0)
    epochs = 40
    found = torch.zeros_like(x)
    for epoch in range(epochs + 3):
        for rows in torch.randperm(len(groups), generator=generator).split(size):
            batch = features[rows].clone().requires_grad_()
            told = reader(batch, rows)
            if misaligned[rows].any():
                told.backward()
                if epoch >= 3:
                    found[rows] += batch.grad
    # Each row was seen once an epoch, in a batch that stands for the whole epoch.
    found *= size / len(groups) / epochs
    assert float((found - x.grad).norm() / x.grad.norm()) < 0.1


def test_head_and_network_learn_nothing_from_each_other(toy, lopsided, pass_of):
    tilted = replace(toy, data=lopsided)
    rows = torch.arange(0, len(lopsided.fit), 2)
    seen, weights = pass_of(tilted, rows)
    before = {name: value.detach().clone() for name, value in weights.items()}
    twin = BiasHead(seen.features.detach(), 2)
    twin.step(seen.features.detach(), lopsided.fit.groups.biases[rows, 0])
    heads = []
    original = BiasHead.__init__

    def remember(self, *args):
        original(self, *args)
        heads.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BiasHead, "__init__", remember)
        method = VCBA(information="misaligned")
        loss, figures = method.new_objective(toy.subject, lopsided).loss(seen)
    (head,) = heads
    # The head took its own step and no other, to the bit; the network none yet.
    assert torch.equal(head.weight, twin.weight)
    loss.backward()
    assert torch.equal(head.weight, twin.weight)
    assert head.weight.grad is None
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert all(bool(value.grad.any()) for value in weights.values())
    assert set(figures) == {"task_loss", "bias_term"}
    assert float(loss.detach()) == pytest.approx(
        float(figures["task_loss"]) + 2 * float(figures["bias_term"]), rel=1e-5
    )


def test_ablations_read_other_rows_or_none(toy, lopsided, pass_of):
    rows = torch.arange(0, len(lopsided.fit), 2)
    told = {}
    for kind, weight in (("within", 0.5), ("misaligned", 2), ("all", 2), ("none", 0)):
        seen, _ = pass_of(replace(toy, data=lopsided), rows)
        loss, figures = VCBA(information=kind).new_objective(toy.subject, lopsided).loss(seen)
        bias_term, task = float(figures["bias_term"]), float(figures["task_loss"])
        assert float(loss.detach()) == pytest.approx(task + weight * bias_term, rel=1e-5)
        told[kind] = bias_term
    assert told["none"] == told["misaligned"] != told["all"]
    # Within classes, as the search has it: dependence there, and what varies there at all.
    features, fit = seen.features.detach(), lopsided.fit.groups
    target, bias = fit.target[rows], fit.biases[rows, 0]
    expected = hsic(within_classes(features, target, 2), bias) + scatter(features, target, 2)
    assert told["within"] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(OptionError, match="--information: found 'some', expected within or mis"):
        VCBA(information="some")  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("small_steps")
def test_rows_against_the_bias_gain_by_their_weights(toy, lopsided, worst_group):
    settings = {"epochs": 4, "lr": 1e-4}
    plain = Finetune(balance="none", **settings).fit(toy.subject, lopsided)
    weighed = VCBA(information="none", **settings).fit(toy.subject, lopsided)
    assert worst_group(toy, weighed) > worst_group(toy, plain) + 0.1


def test_what_is_told_within_classes_is_removed(toy, lopsided):
    told = {}
    for kind in ("within", "none"):
        edit = VCBA(information=kind, epochs=4).fit(toy.subject, lopsided)
        changes = device_changes(toy.subject, edit)
        features = extract(toy.subject, lopsided.report, overrides=changes).features
        groups = lopsided.report.groups
        told[kind] = hsic(within_classes(features, groups.target, 2), groups.biases[:, 0])
    assert float(told["within"]) < 0.5 * float(told["none"])


def test_rows_are_drawn_as_they_weigh_and_in_the_paper_weigh_as_drawn(toy, lopsided, pass_of):
    rows = torch.arange(0, len(lopsided.fit), 2)
    seen, _ = pass_of(replace(toy, data=lopsided), rows)
    groups = lopsided.fit.groups
    aligned = groups.biases[:, 0] == groups.target
    weights = row_weights(groups, aligned[:, None], "val.csv")
    each = cross_entropy(seen.logits, groups.target[rows], reduction="none").detach()
    drawn = VCBA().new_objective(toy.subject, lopsided)
    torch.testing.assert_close(drawn.draws, weights)
    torch.testing.assert_close(drawn.loss(seen)[1]["task_loss"], each.mean())
    weighed = VCBA(recipe="paper").new_objective(toy.subject, lopsided)
    assert weighed.draws is None
    expected = (weights[rows] * each).mean()
    torch.testing.assert_close(weighed.loss(seen)[1]["task_loss"], expected)


def test_where_the_network_says_nothing_the_rows_do(toy, lopsided):
    groups = lopsided.fit.groups
    right = one_hot(groups.target, 2).float()
    assert [pull.tolist() for pull in _pulls(right, groups)] == [[0, 1]]
    # The network's own answers count first.
    turned = one_hot(1 - groups.biases[:, 0], 2).float()
    assert [pull.tolist() for pull in _pulls(turned, groups)] == [[1, 0]]


def test_the_paper_s_recipe_steps_as_it_says():
    settings = VCBA(recipe="paper", epochs=40).settings()
    assert (settings.optimiser, settings.lr, settings.weight_decay) == ("sgd", 0.1, 1e-4)
    assert (settings.batch_size, settings.epochs, settings.augment) == (100, 40, False)
    weight = torch.zeros(1, requires_grad=True)
    optimiser, schedule = settings.new_optimiser({"w": weight})
    rates = []
    for _ in range(40):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 20 + [0.01] * 10 + [0.001] * 10)
    assert optimiser.param_groups[0]["momentum"] == 0.9
    with pytest.raises(OptionError, match="--recipe: found 'paper', which finetune has none of"):
        Finetune(recipe="paper")


def test_by_default_the_step_is_a_share_of_the_weights():
    settings = VCBA(epochs=10).settings()
    weights = {"a": torch.full((3,), 1.0), "b": torch.full((3,), 9.0)}
    optimiser, schedule = settings.new_optimiser(weights)
    rates, shares = [], []
    for _ in range(10):
        before = {name: value.clone() for name, value in weights.items()}
        for value in weights.values():
            value.grad = torch.ones(3)
        optimiser.step()
        rates.append(optimiser.param_groups[0]["lr"])
        shares.append([float((weights[n] - before[n]).norm() / before[n].norm()) for n in before])
        schedule.step()
    assert rates[0] < rates[1] < max(rates) == pytest.approx(0.02)
    assert rates[-1] < 1e-5
    torch.testing.assert_close(torch.tensor(shares), torch.tensor(rates)[:, None].expand(10, 2))


def test_new_weights_do_not_know_the_given_ones(tiny):
    subject = surgeon.load(tiny)
    data = surgeon.read_data(subject, tiny / "val.csv")
    method = VCBA(recipe="paper", from_scratch=True, epochs=1, batch_size=12)
    before = subject.fingerprint()
    edit = method.fit(subject, data)
    assert subject.fingerprint() == before
    given = dict(subject.net.named_parameters())
    assert set(edit.updates) == set(given)
    # Only where it stops may the given network tell: other weights, the same new ones.
    other = subject.with_tensors({n: 0.5 * w for n, w in given.items() if "conv" in n})
    assert _pulls(extract(other, data.fit).logits, data.fit.groups)[0].tolist() == (
        _pulls(extract(subject, data.fit).logits, data.fit.groups)[0].tolist()
    )
    again = method.fit(other, data)
    assert all(torch.equal(edit.updates[n], again.updates[n]) for n in given)
    seeded = replace(method, seed=1).fit(subject, data)
    assert not torch.equal(edit.updates["conv_stem.weight"], seeded.updates["conv_stem.weight"])
    with pytest.raises(OptionError, match="--from-scratch: found with --recipe default"):
        VCBA(from_scratch=True)
