"""Units close on schedule, the least needed first."""

from __future__ import annotations

import pytest
import torch

from surgeon.methods.closing import UnitClosing


def logits(*sizes):
    return [torch.zeros(size) for size in sizes]


def run(closing, grads, steps=100):
    """Feed the same gradients at every step; give the count of closed units after each."""
    counts = []
    for step in range(1, steps + 1):
        for logit, grad in zip(closing.logits, grads, strict=True):
            logit.grad = grad
        closing.step(step / steps)
        counts.append(sum(int((logit < 0).sum()) for logit in closing.logits))
    return counts


def test_the_least_needed_close_first_and_stay_closed():
    closing = UnitClosing(logits(6, 4), 0.3)
    grads = [torch.tensor([5.0, -0.1, 3.0, 0.2, -4.0, 6.0]), torch.tensor([1.0, -9.0, 0.0, 7.0])]
    counts = run(closing, grads)
    assert (closing.logits[0] < 0).tolist() == [False, True, False, True, False, False]
    assert (closing.logits[1] < 0).tolist() == [False, False, True, False]
    assert counts == sorted(counts)
    assert closing.finished


def test_closing_begins_after_a_tenth_and_ends_at_half():
    closing = UnitClosing(logits(100), 0.4)
    counts = run(closing, [torch.arange(100.0)])
    assert counts[9] == 0
    assert 0 < counts[15] < 10
    assert 15 < counts[29] < 25
    assert counts[48] < 40 == counts[49] == counts[-1]


def test_no_layer_loses_more_than_its_share():
    closing = UnitClosing(logits(10, 10), 0.5)
    run(closing, [torch.full((10,), 0.01), torch.full((10,), 5.0)])
    assert [int((logit < 0).sum()) for logit in closing.logits] == [8, 2]


def test_a_layer_keeps_what_it_needs():
    closing = UnitClosing(logits(10, 10), 0.5, [9, 0])
    run(closing, [torch.full((10,), 0.01), torch.full((10,), 5.0)])
    assert [int((logit < 0).sum()) for logit in closing.logits] == [1, 8]
    assert closing.finished


@pytest.mark.parametrize(("sizes", "share"), [((1, 1), 0.9), ((3,), 0.0)])
def test_what_cannot_be_closed_is_no_endless_search(sizes, share):
    closing = UnitClosing(logits(*sizes), share)
    assert set(run(closing, [torch.ones(size) for size in sizes])) == {0}
    assert closing.finished


def test_a_module_never_called_has_no_need():
    closing = UnitClosing(logits(4, 4), 0.25)
    for step in range(1, 51):
        closing.logits[0].grad = torch.ones(4)
        closing.step(step / 50)
    assert [int((logit < 0).sum()) for logit in closing.logits] == [0, 2]
