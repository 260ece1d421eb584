from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon import stacked_mlp
from surgeon.stacked_mlp import Fold, mlp_predictions


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stack_learns_what_networks_of_their_own_learn(depth):
    generator = torch.Generator().manual_seed(0)
    stack = stacked_mlp._Stack(4, 3, depth, 1e-2, 3, generator)
    nets = []
    for fold in range(3):
        layers = [nn.Linear(4, 256), *[nn.Linear(256, 256)] * (depth - 1), nn.Linear(256, 3)]
        for position, layer in enumerate(layers):
            layer.weight.data = stack._layers[2 * position][fold].T.clone()
            layer.bias.data = stack._layers[2 * position + 1][fold, 0].clone()
        modules = [x for layer in layers for x in (layer, nn.ReLU())][:-1]
        nets.append(nn.Sequential(*modules))
    optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2) for net in nets]
    for step in range(12):
        weights = torch.rand(3, 12, generator=generator) + 0.5
        # The second network's last rows are filling, more of them in every batch.
        weights[1, 12 - step :] = 0
        if step == 5:
            stack._drop(torch.tensor([False, True, True]))
        inputs = torch.randn(3, 12, 4, generator=generator)
        labels = torch.randint(0, 3, (3, 12), generator=generator)
        stack.step(inputs, labels, weights)
        for fold in stack.alive.tolist():
            rows = weights[fold] > 0
            loss = nn.functional.cross_entropy(
                nets[fold](inputs[fold, rows]), labels[fold, rows], reduction="none"
            )
            optimizers[fold].zero_grad()
            (loss * weights[fold, rows]).mean().backward()
            optimizers[fold].step()
    for place, fold in enumerate([1, 2]):
        layers = [x[place : place + 1] for x in stack._layers]
        ours = stacked_mlp._activations(layers, inputs[:1])[-1][0]
        torch.testing.assert_close(ours, nets[fold](inputs[0]), rtol=1e-4, atol=1e-5)


def test_the_best_weights_are_kept_not_the_last():
    generator = torch.Generator().manual_seed(0)
    stack = stacked_mlp._Stack(2, 2, 1, 1e-4, 1, generator)
    inputs = torch.randn(1, 40, 2, generator=generator)
    labels, shares = (inputs[..., 0] > 0).long(), torch.full((1, 40), 1 / 40)

    def epoch(labels):
        for _ in range(60):
            stack.step(inputs, labels, torch.ones(1, 40))
        stack.keep_best(inputs, (inputs[..., 0] > 0).long(), shares)

    epoch(labels)
    best = stack.logits_of(0, inputs[0])
    assert stack.score[0] > 0.9
    epoch(1 - labels)
    epoch(1 - labels)
    torch.testing.assert_close(stack.logits_of(0, inputs[0]), best, rtol=0, atol=0)
    for _ in range(20):
        epoch(labels)
    assert stack.score[0] == pytest.approx(1)
    # An equal score with a lower loss is better.
    loss = float(stack.loss[0])
    epoch(labels)
    assert stack.loss[0] < loss


def test_a_fold_out_of_patience_is_dropped_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(stacked_mlp, "_PATIENCE", 2)
    stack = stacked_mlp._Stack(2, 2, 1, 1e-4, 2, torch.Generator().manual_seed(0))
    inputs, shares = torch.zeros(2, 4, 2), torch.full((2, 4), 0.25)
    for sure in (0, 0, 1):
        # The first network is right from the start, the second from the last round on.
        stack._layers[3].data[:, 0, :2] = torch.tensor([[9.0, 0.0], [9.0 * sure, 9.0 * (1 - sure)]])
        stack.keep_best(inputs, torch.zeros(2, 4, dtype=torch.int64), shares)
    assert stack.alive.tolist() == [1]
    assert stack.score.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_follow_the_folds_and_the_seed(monkeypatch, dtype):
    monkeypatch.setattr(stacked_mlp, "_product_dtype", lambda: dtype)
    monkeypatch.setattr(stacked_mlp, "_EPOCHS", 40)
    monkeypatch.setattr(stacked_mlp, "_BATCH", 32)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(90, 3, generator=generator), torch.arange(90) % 2
    features[:, 0] += 5 * labels
    spread = torch.tensor([0.1, 50, 5000])
    features = spread * features + 1000

    def fold(learn, choose, scale):
        ones, shares = torch.ones(len(learn)), torch.full((len(choose),), 1 / len(choose))
        return Fold(learn, choose, torch.arange(90), torch.full((3,), 1e3), scale, ones, shares)

    rows = torch.arange(90)
    # The second fold is short, and what tells is scaled away from it.
    even, blind = spread, torch.tensor([1e5, 50, 5000])
    folds = [fold(rows[:70], rows[70:], even), fold(rows[:41], rows[80:], blind)]
    first = mlp_predictions(features, labels, 2, folds, seed=0)
    reads = [float((predicted == labels).double().mean()) for predicted in first]
    assert reads[0] > 0.95
    assert reads[1] < 0.75
    again = mlp_predictions(features, labels, 2, folds, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = mlp_predictions(features, labels, 2, folds, seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
