"""Fine-tuning that weighs the groups by how badly they fare."""

from __future__ import annotations

import math

import pytest
import torch

from surgeon.errors import OptionError
from surgeon.methods import Finetune, GroupDRO
from surgeon.methods.training import Pass


def rows_of_groups(data, *groups):
    """One fit row of each group named."""
    return torch.stack([(data.fit.groups.index == group).nonzero()[0, 0] for group in groups])


def passed(logits, rows):
    """What a loss is given; this one looks at logits alone."""
    return Pass(rows, torch.empty(len(rows), 0), logits, torch.nn.Identity(), 0.0)


def test_weights_follow_the_losses_of_the_groups(toy):
    step = 0.7
    loss = GroupDRO(group_step=step).new_objective(toy.subject, toy.data).loss
    weights = [0.25] * 4
    for groups, sure in (((0, 1, 2, 3), 1.0), ((0, 0, 3), -2.0), ((2,), 0.5)):
        rows = rows_of_groups(toy.data, *groups)
        logits = torch.zeros(len(rows), 2)
        # Group 0 is more and more wrong, the others are undecided.
        wrong = 1 - toy.data.fit.groups.target[rows]
        for i, group in enumerate(groups):
            logits[i, wrong[i]] = sure if group == 0 else 0.0
        each = {0: math.log(1 + math.exp(sure)), 1: math.log(2), 2: math.log(2), 3: math.log(2)}
        found = {group: each[group] if group in groups else 0.0 for group in range(4)}
        weights = [w * math.exp(step * found[g]) for g, w in enumerate(weights)]
        weights = [w / sum(weights) for w in weights]
        expected = sum(weights[group] * found[group] for group in range(4))
        assert float(loss(passed(logits, rows))[0]) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_reaches_every_row_by_the_weight_of_its_group(toy):
    loss = GroupDRO(group_step=1e-9).new_objective(toy.subject, toy.data).loss
    rows = rows_of_groups(toy.data, 0, 0, 0, 1)
    logits = torch.zeros(4, 2, requires_grad=True)
    loss(passed(logits, rows))[0].backward()
    sizes = logits.grad.abs().sum(1)
    assert sizes[3] == pytest.approx(3 * float(sizes[0]), rel=1e-4)


@pytest.mark.usefixtures("small_steps")
def test_small_groups_gain_where_rows_come_as_they_are(toy, lopsided, worst_group):
    settings = {"epochs": 4, "lr": 1e-4, "balance": "none"}
    plain = worst_group(toy, Finetune(**settings).fit(toy.subject, lopsided))
    weighed = worst_group(toy, GroupDRO(group_step=0.3, **settings).fit(toy.subject, lopsided))
    assert weighed > plain + 0.1


def test_a_step_of_nothing_is_refused():
    with pytest.raises(OptionError, match="--group-step: found 0, expected more than 0"):
        GroupDRO(group_step=0)
    with pytest.raises(OptionError, match="--epochs: found 0"):
        GroupDRO(epochs=0)
