"""The features whose gradients give the bias away are dropped, and count as their mean."""

from __future__ import annotations

import pytest
import torch

from surgeon.bias_head import BiasHead
from surgeon.data import extract
from surgeon.errors import OptionError
from surgeon.methods import GBAMask
from surgeon.methods.base import device_changes
from surgeon.methods.gba_mask import _strikes
from surgeon.probes import Prober
from surgeon.surgery import apply

HEAD = "fc.weight"


def kept(edit):
    return edit.masks[HEAD][0]


def test_scores_are_those_of_a_mask_per_image():
    generator = torch.Generator().manual_seed(0)
    bias = torch.arange(300) % 3
    x = torch.randn(300, 8, generator=generator)
    x[:, :3] += 2 * torch.nn.functional.one_hot(bias, 3)
    head = BiasHead(x, 3)
    head.fit(x, bias, generator=torch.Generator().manual_seed(0))
    struck = torch.zeros(8)
    right = 0
    for image, value in zip(x, bias, strict=True):
        image = image.clone().requires_grad_()
        logits = image @ head.weight.T + head.bias_term
        found = int(logits.argmax())
        (gradient,) = torch.autograd.grad(logits[found] - logits.mean(), image)
        right += found == int(value)
        struck += (gradient if found == int(value) else -gradient).relu()
    assert 100 < right < 300  # both kinds of rows are there
    scores = _strikes(x, bias, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(scores, struck / 300)


def test_what_is_kept_tells_the_bias_less_than_what_is_dropped(toy):
    rows, prober = toy.data.report, Prober(seed=0)
    features, target, bias = (
        extract(toy.subject, rows).features,
        rows.groups.target,
        rows.groups.biases[:, 0],
    )

    def told(some):
        return prober.score(features[:, some], target, bias, 2, 2, "linear").accuracy

    last = 1.0
    for share in (0.5, 0.75, 0.9):
        keep = kept(GBAMask(sparsity=share).fit(toy.subject, toy.data))
        assert int((~keep).sum()) == round(24 * share)
        assert told(~keep) > 0.99
        assert told(keep) < last - 0.02
        last = told(keep)
    assert last < 0.8


def test_a_dropped_feature_counts_as_its_mean(toy):
    edit = GBAMask(sparsity=0.3).fit(toy.subject, toy.data)
    assert set(edit.updates) == {"fc.bias"}
    before, after = (
        extract(toy.subject, toy.data.fit, overrides=changes)
        for changes in (None, device_changes(toy.subject, edit))
    )
    torch.testing.assert_close(after.logits.mean(0), before.logits.mean(0))
    features = torch.where(kept(edit), before.features, before.features.mean(0))
    head = toy.subject.net.fc
    torch.testing.assert_close(after.logits, features @ head.weight.T + head.bias)
    assert torch.equal(apply(toy.subject, edit).tensors()[HEAD][:, ~kept(edit)], torch.zeros(2, 7))


def test_nothing_and_everything_can_be_dropped(small):
    assert bool(kept(GBAMask(sparsity=0).fit(small.subject, small.data)).all())
    assert not bool(kept(GBAMask(sparsity=1).fit(small.subject, small.data)).any())
    with pytest.raises(OptionError, match="--sparsity: found nan, expected 0 to 1"):
        GBAMask(sparsity=float("nan"))
