from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import linear, one_hot

from surgeon.erasure import fit_erasure
from surgeon.groups import Groups
from surgeon.probes import Prober


def planted(n, width, values, seed=0, scale=1.0, lopsided=False):
    """Features that carry every bias, at uneven scales, and their groups."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (n,), generator=generator)
    biases = torch.stack([torch.randint(b, (n,), generator=generator) for b in values], 1)
    if lopsided:
        same = torch.rand(n, generator=generator) < 0.8
        biases[same, 0] = target[same]
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    for k, b in enumerate(values):
        shift = torch.randn(b, width, generator=generator, dtype=torch.float64)
        x += 2 * shift[biases[:, k]]
    x += target[:, None] * torch.randn(width, generator=generator, dtype=torch.float64) + 3
    spread = torch.logspace(-2, 1, width, dtype=torch.float64)
    names = tuple(tuple(map(str, range(b))) for b in values)
    columns = tuple(f"bias{k}" for k in range(len(values)))
    return scale * x * spread, Groups(target, biases, ("0", "1"), columns, names)


def coded(groups):
    return torch.cat(
        [one_hot(groups.biases[:, k], groups.num_values(k)).double() for k in groups.fitted], 1
    )


def row_weights(groups, balance):
    weights = 1 / groups.counts().double()[groups.index] if balance else torch.ones(len(groups))
    return weights.double() / weights.sum()


def covariance(x, z, weights):
    return ((x - weights @ x) * weights[:, None]).T @ (z - weights @ z)


CASES = [
    (2000, 1, (2,), 1.0, True),
    (2000, 7, (2,), 1.0, False),
    (3000, 24, (5,), 1e-3, True),
    (3000, 24, (3, 4), 1e3, True),
    (200, 40, (3,), 1.0, True),  # fewer than ten rows per feature: shrunk
    (60, 90, (2, 2), 1.0, False),  # fewer rows than features
]


@pytest.mark.parametrize(("n", "width", "values", "scale", "balance"), CASES)
def test_no_covariance_with_any_bias_value_is_left(n, width, values, scale, balance):
    x, groups = planted(n, width, values, scale=scale, lopsided=True)
    erasure = fit_erasure(x, groups, balance=balance)
    z, weights = coded(groups), row_weights(groups, balance)
    size = float(covariance(x, z, weights).abs().max())
    assert size > 1e-2 * scale * float(x.std() / scale)
    left = covariance(erasure(x), z, weights).abs().max()
    assert left <= 1e-8 * max(1.0, size)
    rank = erasure.left.shape[1]
    assert 1 <= rank <= sum(b - 1 for b in values)
    assert erasure.left.dtype == erasure.right.dtype == erasure.mean.dtype == torch.float64
    torch.testing.assert_close(erasure(erasure(x)), erasure(x), rtol=1e-7, atol=1e-7 * scale)
    torch.testing.assert_close(erasure.mean, weights @ x)


@pytest.mark.parametrize("case", CASES[1:4])
def test_agrees_with_the_authors_package(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it compiles with what torch gives up
        from concept_erasure import LeaceFitter
    n, width, values, scale, _ = case
    x, groups = planted(n, width, values, scale=scale, lopsided=True)
    # Its default shrinks, drops directions, and keeps the trace from growing.
    exact = {"shrinkage": False, "svd_tol": 1e-12, "constrain_cov_trace": False}
    eraser = LeaceFitter.fit(x.double(), coded(groups), **exact).eraser
    ours = fit_erasure(x, groups, balance=False)
    moved = float((ours(x.double()) - x).abs().max())
    assert moved > 0.1 * scale
    torch.testing.assert_close(ours(x.double()), eraser(x.double()), rtol=0, atol=1e-8 * moved)


def test_a_linear_reader_of_other_rows_is_left_at_chance():
    x, groups = planted(9000, 128, (10,))
    x, fit, other = x.float(), torch.arange(6000), torch.arange(6000, 9000)
    erasure, rows = fit_erasure(x[fit], groups.take(fit)), groups.take(other)
    read = [
        Prober(seed=0).score(seen, rows.target, rows.biases[:, 0], 2, 10, "linear").accuracy
        for seen in (x[other], erasure(x[other]))
    ]
    assert read[0] > 0.9
    assert 0.05 < read[1] < 0.15


def test_the_weighted_fit_is_not_the_plain_one():
    x, groups = planted(3000, 6, (2,), lopsided=True)
    z = coded(groups)
    plain = covariance(fit_erasure(x, groups, balance=True)(x), z, row_weights(groups, False))
    assert plain.abs().max() > 1e-3


def test_the_change_is_the_least_possible():
    x, groups = planted(4000, 8, (3,))
    erasure = fit_erasure(x, groups, balance=False)
    z, weights = coded(groups), row_weights(groups, False)
    # The naive way: project the class means out orthogonally. It erases too, and changes more.
    basis = torch.linalg.qr(covariance(x, z, weights)[:, :2])[0]
    naive = x - (x - x.mean(0)) @ basis @ basis.T
    assert covariance(naive, z, weights).abs().max() < 1e-8
    ours, theirs = ((x - r).square().sum() for r in (erasure(x), naive))
    assert 0 < ours < 0.9 * theirs
    # First-order certificate: what was removed is orthogonal to every map that leaves the
    # covariance at zero, so that adding some of one only makes the change larger.
    generator = torch.Generator().manual_seed(1)
    removed = x - erasure(x)
    for _ in range(5):
        noise = torch.randn(8, 8, dtype=torch.float64, generator=generator)
        sideways = (x - x.mean(0)) @ (noise - basis @ basis.T @ noise)
        assert covariance(sideways, z, weights).abs().max() < 1e-8
        inner = (removed * sideways).sum() / (removed.norm() * sideways.norm())
        assert abs(inner) < 1e-9


@pytest.mark.parametrize("bias_term", [True, False])
def test_folded_head_on_features_equals_head_on_erased_ones(bias_term):
    x, groups = planted(500, 12, (3,))
    erasure = fit_erasure(x, groups)
    if not bias_term:
        erasure = type(erasure)(erasure.left, erasure.right, torch.zeros(12, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 12, generator=generator)
    shift = torch.randn(4, generator=generator) if bias_term else None
    folded, term = erasure.fold(weight, shift)
    assert folded.dtype == term.dtype == torch.float32
    expected = linear(erasure(x), weight.double(), None if shift is None else shift.double())
    found = linear(x, folded.double(), term.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_audited_columns_are_not_erased():
    x, groups = planted(3000, 8, (2, 2))
    kept = Groups(
        groups.target,
        groups.biases,
        groups.target_names,
        groups.columns,
        groups.value_names,
        ("bias1",),
    )
    erasure = fit_erasure(x, kept)
    weights = row_weights(kept, True)
    assert erasure.left.shape[1] == 1
    z = coded(groups)
    left = covariance(erasure(x), z, weights).abs()
    assert left[:, :2].max() < 1e-8
    assert left[:, 2:].max() > 1e-2


def test_the_target_survives_a_lopsided_file():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(2, (4000,), generator=generator)
    bias = torch.where(torch.rand(4000, generator=generator) < 0.9, target, 1 - target)
    x = torch.stack([target, bias], 1) + 0.1 * torch.randn(4000, 2, generator=generator)
    groups = Groups(target, bias[:, None], ("0", "1"), ("bias",), (("0", "1"),))

    def gap(balance):
        erased = fit_erasure(x, groups, balance=balance)(x.double())
        means = [[erased[(target == t) & (bias == b)].mean(0) for b in (0, 1)] for t in (0, 1)]
        by_target = sum((means[1][b] - means[0][b]).norm() for b in (0, 1)) / 2
        return float(by_target)

    assert gap(True) > 0.9
    assert gap(False) < gap(True)


def test_a_constant_feature_and_a_bias_without_signal():
    x, groups = planted(300, 6, (2,))
    x[:, 2] = 5.0
    erased = fit_erasure(x, groups)(x)
    assert torch.isfinite(erased).all()
    torch.testing.assert_close(erased[:, 2], x[:, 2])
    zeros = fit_erasure(torch.zeros(300, 6), groups)(x)
    torch.testing.assert_close(zeros, x)


@pytest.mark.parametrize("n", [100, 2000])  # shrunk, and not
def test_a_dead_feature_stays_dead(n):
    x, groups = planted(n, 30, (4,))
    x[:, [3, 17]] = torch.tensor([0.0, -2.5], dtype=torch.float64)
    erasure = fit_erasure(x.float(), groups)
    for features in (x.float(), x):
        erased = erasure(features)
        assert torch.equal(erased[:, 3], features[:, 3])
        assert torch.equal(erased[:, 17], features[:, 17])
    z, weights = coded(groups), row_weights(groups, True)
    left = covariance(erasure(x.float().double()), z, weights).abs().max()
    assert left < 1e-9 * covariance(x, z, weights).abs().max()


def colours(n, width, lopsided, signal, seed):
    """Features of ten classes, and of ten bias values with some signal."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(10, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < lopsided
    bias = torch.where(same, target, torch.randint(10, (n,), generator=generator))
    centres = torch.randn(2, 10, width, generator=generator)
    x = torch.randn(n, width, generator=generator) + 3 * centres[0, target]
    names = tuple(map(str, range(10)))
    return x + signal * centres[1, bias], Groups(target, bias[:, None], names, ("bias",), (names,))


@pytest.mark.parametrize("n", [30, 300, 3000])
@pytest.mark.parametrize("lopsided", [0.0, 0.9])
def test_noise_alone_is_not_erased(n, lopsided):
    for seed in range(3):
        x, groups = colours(n, 32, lopsided, 0.0, seed)
        erasure = fit_erasure(x, groups, above_noise=True)
        assert erasure.left.shape[1] == 0
        assert torch.equal(erasure(x), x)
        weight, bias_term = torch.randn(10, 32), torch.randn(10)
        folded = erasure.fold(weight, bias_term)
        assert torch.equal(folded[0], weight)
        assert torch.equal(folded[1], bias_term)


def test_what_stands_out_of_noise_is_erased_as_without_the_bound():
    x, groups = colours(3000, 32, 0.0, 1.0, 0)
    bound, whole = (fit_erasure(x, groups, above_noise=above) for above in (True, False))
    assert whole.left.shape[1] == 9
    assert torch.equal(bound.left, whole.left)
    assert torch.equal(bound.right, whole.right)
    # Of the same signal less stands out where few rows go against the shortcut.
    x, groups = colours(1500, 32, 0.95, 1.0, 0)
    bound, whole = (fit_erasure(x, groups, above_noise=above) for above in (True, False))
    rank = bound.left.shape[1]
    assert 0 < rank < 9
    torch.testing.assert_close(bound.left, whole.left[:, :rank])


def test_erasing_what_stands_out_spares_the_target():
    def worth(erasure, x, target):
        fitted = LogisticRegression(max_iter=500).fit(erasure(x).numpy(), target.numpy())
        y, groups = colours(4000, 12, 0.0, 0.3, 1)
        return fitted.score(erasure(y).numpy(), groups.target.numpy())

    # The same centres, few rows that tell the bias from the target, and a weak bias.
    x, groups = colours(4000, 12, 0.0, 0.3, 1)
    few = torch.arange(300)
    x, groups = x[few], groups.take(few)
    bound, whole = (
        worth(fit_erasure(x, groups, above_noise=above), x, groups.target)
        for above in (True, False)
    )
    assert bound > whole + 0.01
