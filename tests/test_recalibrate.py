from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon.recalibrate import batch_norms, batch_statistics, recalibrate


def state(subject):
    return [(n, m.training, getattr(m, "momentum", None)) for n, m in subject.net.named_modules()]


def drawn(rows, size, seed=0):
    return (x for _, x in rows.epoch(size, torch.Generator().manual_seed(seed)))


def test_equals_a_plain_loop(toy):
    subject, rows = toy.subject, toy.data.fit
    before, modes = subject.fingerprint(), state(subject)
    name = "features.0.weight"
    halved = {name: subject.tensors()[name] * 0.5}
    found = recalibrate(subject, drawn(rows, 128), halved)
    net = subject.with_tensors(halved).net
    means, variances = [], []
    with torch.no_grad():
        for x in drawn(rows, 128):
            y = net.features[0](x)
            means.append(y.mean((0, 2, 3)))
            variances.append(y.var((0, 2, 3)))
    torch.testing.assert_close(found["features.1.running_mean"], torch.stack(means).mean(0))
    torch.testing.assert_close(found["features.1.running_var"], torch.stack(variances).mean(0))
    assert set(found) == {
        f"{norm}.{which}"
        for norm in batch_norms(subject.net)
        for which in ("running_mean", "running_var")
    }
    assert not torch.equal(
        found["features.1.running_mean"], subject.tensors()["features.1.running_mean"]
    )
    assert subject.fingerprint() == before
    assert state(subject) == modes


def test_same_seed_same_statistics(toy):
    first, again, other = (
        recalibrate(toy.subject, drawn(toy.data.fit, 50, seed), {}) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_a_network_without_batch_norm_has_none(pico, toy):
    subject = pico("test_vit", 64, img_size=64)
    assert recalibrate(subject, drawn(toy.data.fit, 50), {}) == {}


def test_modes_and_statistics_come_back_after_an_error(small):
    subject = small.subject
    before, modes = subject.fingerprint(), state(subject)

    def broken():
        yield small.data.fit.batch(torch.arange(10))
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        recalibrate(subject, broken(), {})
    assert state(subject) == modes
    assert subject.fingerprint() == before


def test_batch_statistics_normalise_by_the_batch_and_fill_the_copies(toy):
    subject = toy.subject
    before = subject.fingerprint()
    x = toy.data.fit.batch(torch.arange(40))
    with batch_statistics(subject) as buffers:
        start = {n: t.clone() for n, t in buffers.items()}
        training = [m.training for m in subject.net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(training)
        assert not subject.net.training
        features = subject.forward(x, buffers)[0]
        shifted = subject.forward(x, {**buffers, "features.0.bias": torch.full((12,), 9.0)})[0]
        changed = [n for n in buffers if not torch.equal(buffers[n], start[n])]
    torch.testing.assert_close(features, shifted, rtol=1e-3, atol=1e-4)
    assert len(changed) == len(buffers)
    assert subject.fingerprint() == before
    assert not any(module.training for module in subject.net.modules())
