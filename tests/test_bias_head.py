from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from surgeon.bias_head import BiasHead


def blobs(n=600, width=6, values=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(values, (n,), generator=generator)
    centres = 2 * torch.randn(values, width, generator=generator)
    return centres[labels] + torch.randn(n, width, generator=generator), labels


def test_one_step_is_that_of_torch_sgd():
    x, labels = blobs()
    head = BiasHead(x, 3)
    weight = torch.zeros(3, 6, requires_grad=True)
    bias_term = torch.zeros(3, requires_grad=True)
    groups = [{"params": [weight], "weight_decay": 1e-4}, {"params": [bias_term]}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for _ in range(3):
        sgd.zero_grad()
        loss = cross_entropy(x @ weight.T + bias_term, labels)
        loss.backward()
        sgd.step()
        found = head.step(x, labels)
        torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(head.weight, weight.detach())
    torch.testing.assert_close(head.bias_term, bias_term.detach())


def test_reads_the_bias():
    x, labels = blobs()
    head = BiasHead(x, 3)
    before = head(x)
    torch.testing.assert_close(before, torch.full_like(before, 1 / 3))
    epochs = head.fit(x, labels, generator=torch.Generator().manual_seed(0))
    assert 6 < epochs <= 200
    accuracy = (head(x).argmax(1) == labels).float().mean()
    assert accuracy > 0.9


def test_probabilities_send_gradients_into_the_features_and_training_does_not():
    x, labels = blobs()
    x.requires_grad_()
    head = BiasHead(x.detach(), 3)
    head.step(x, labels)
    assert x.grad is None
    p = head(x)
    torch.testing.assert_close(p.sum(1), torch.ones(len(x)))
    p[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0


def test_same_generator_same_head():
    x, labels = blobs()
    heads = [BiasHead(x, 3) for _ in range(3)]
    for head, seed in zip(heads, (0, 0, 1), strict=True):
        head.fit(x, labels, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


def test_dead_features_stay_out():
    x, labels = blobs()
    x[:, 1:] = 0
    head = BiasHead(x, 3)
    head.fit(x, labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head.weight[:, 1:], torch.zeros(3, 5))
    assert torch.isfinite(head(x)).all()
