from __future__ import annotations

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from surgeon.dependence import hsic, scatter, within_classes


def rows(n=400, width=6, values=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(values, (n,), generator=generator)
    noise = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return noise, labels, generator


def test_hsic_is_the_cosine_of_centred_kernels():
    x, labels, _ = rows(n=30)
    distances = torch.cdist(x, x).square()
    kernel = torch.exp(-distances / distances.median())
    centre = torch.eye(30).double() - 1 / 30
    kernel = centre @ kernel @ centre
    same = centre @ (labels[:, None] == labels).double() @ centre
    expected = (kernel * same).sum() / kernel.norm() / same.norm()
    torch.testing.assert_close(hsic(x, labels), expected)


def test_hsic_tells_dependence_of_any_shape_from_none():
    x, labels, generator = rows()
    none = float(hsic(x, labels))
    shifted = float(hsic(x + labels[:, None], labels))
    # The mean of every value is the same: nothing linear to read.
    wider = float(hsic(x * (1 + 3 * (labels[:, None] > 1)), labels))
    assert none < 0.05
    assert shifted > 0.3
    assert wider > 2 * none
    point = torch.nn.functional.one_hot(labels).double()
    assert float(hsic(point, labels)) == pytest.approx(1, abs=0.01)
    order = torch.randperm(len(labels), generator=generator)
    assert float(hsic(x + labels[:, None], labels[order])) < 0.05


def test_many_rows_are_read_in_parts():
    x, labels, _ = rows(n=2000)
    x = x + labels[:, None]
    parts = torch.stack([hsic(x[i::2], labels[i::2]) for i in (0, 1)])
    torch.testing.assert_close(hsic(x, labels), parts.mean())


def test_within_classes_the_bias_shows_where_the_class_hides_it():
    noise, target, generator = rows()
    bias = torch.randint(2, (len(target),), generator=generator)
    x = 10 * torch.nn.functional.one_hot(target, 6) + 0.1 * noise + 0.3 * bias[:, None]
    inside = within_classes(x, target, 4)
    for value in range(4):
        torch.testing.assert_close(inside[target == value].mean(0), torch.zeros(6).double())
    assert float(hsic(x, bias)) < 0.05
    assert float(hsic(inside, bias)) > 0.3


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_both_are_blind_to_scale_shift_and_rotation(scale):
    x, labels, generator = rows()
    x = x + labels[:, None]
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    moved = scale * x @ turn + 7
    torch.testing.assert_close(hsic(moved, labels), hsic(x, labels))
    torch.testing.assert_close(scatter(moved, labels, 4), scatter(x, labels, 4))
    torch.testing.assert_close(hsic(x, 3 - labels), hsic(x, labels))


def test_gradients_lower_what_is_measured():
    x, labels, _ = rows()
    start = x + labels[:, None]
    for measure in (lambda z: hsic(z, labels), lambda z: scatter(z, labels, 4)):
        z = start.clone().requires_grad_()
        before = measure(z)
        (grad,) = torch.autograd.grad(before, z)
        assert grad.isfinite().all()
        assert measure(start - 5 * grad / grad.norm()) < before


def test_what_does_not_vary_is_zero_and_keeps_gradients_finite():
    x, labels, _ = rows(n=12)
    flat = torch.zeros(12, 6, dtype=torch.float64, requires_grad=True)
    one = torch.zeros_like(labels)
    values = hsic(flat, labels) + scatter(flat, labels, 4) + hsic(flat + x, one)
    (grad,) = torch.autograd.grad(values, flat)
    assert float(values.detach()) == pytest.approx(0, abs=1e-6)
    assert grad.isfinite().all()


def test_scatter_is_the_share_that_fishers_discriminant_leaves_inside():
    x, labels, _ = rows()
    x = x[:, :1] + 2 * labels[:, None]
    found = float(scatter(x, labels, 4))
    lda = LinearDiscriminantAnalysis(store_covariance=True).fit(x.numpy(), labels.numpy())
    expected = lda.covariance_[0, 0] / float(x.var(correction=0))
    assert found == pytest.approx(expected, rel=1e-6)
    # A class that has no rows, and one more class, change nothing.
    assert float(scatter(x, labels, 9)) == pytest.approx(found)
    assert float(scatter(torch.nn.functional.one_hot(labels).double(), labels, 4)) == 0
