from __future__ import annotations

import torch

from surgeon.data import extract
from surgeon.erasure import fit_erasure
from surgeon.methods import Leace
from surgeon.methods.base import device_changes
from surgeon.probes import Prober


def test_is_the_erasure_of_vanilla_features_alone(toy):
    edit = Leace().fit(toy.subject, toy.data)
    assert not any([edit.masks, edit.units, edit.buffers, edit.updates])
    features = extract(toy.subject, toy.data.fit).features
    expected = fit_erasure(features, toy.data.fit.groups)
    for part in ("left", "right", "mean"):
        assert torch.equal(getattr(edit.erasure, part), getattr(expected, part))
    changes = device_changes(toy.subject, edit)
    assert set(changes) == {"fc.weight", "fc.bias"}


def test_logits_stop_telling_the_bias(toy):
    rows, prober = toy.data.report, Prober(seed=0)
    edit = Leace().fit(toy.subject, toy.data)
    before = extract(toy.subject, rows)
    after = extract(toy.subject, rows, overrides=device_changes(toy.subject, edit))
    assert torch.equal(before.features, after.features)
    target, bias = rows.groups.target, rows.groups.biases[:, 0]
    leaks = [
        prober.score(x, target, bias, 2, 2, "linear").accuracy
        for x in (before.logits, after.logits)
    ]
    assert leaks[0] > 0.7
    assert 0.42 < leaks[1] < 0.58
