from __future__ import annotations

import math
import time

import pytest
import torch

from surgeon.metrics import (
    balanced_accuracy,
    bootstrap_accuracies,
    calibration_error,
    group_accuracies,
    interval,
    pulled_targets,
    reweighted_accuracy,
    wilson_interval,
    worst_group_accuracy,
)

NAN = math.nan


def _rows(n=300, groups=6, empty=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, groups, (n,), generator=generator)
    group[group == empty] = 0
    return torch.rand(n, generator=generator) < 0.3 + 0.1 * group, group


def test_group_accuracies_equal_a_plain_count_in_any_order_of_rows():
    correct, group = _rows()
    by_group = {g: [] for g in range(6)}
    for c, g in zip(correct.tolist(), group.tolist(), strict=True):
        by_group[g].append(c)
    expected = [sum(v) / len(v) if v else NAN for v in by_group.values()]
    order = torch.randperm(len(group))
    for rows in (torch.arange(len(group)), order):
        acc = group_accuracies(correct[rows], group[rows], 6)
        torch.testing.assert_close(
            acc, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=1e-15
        )
    assert acc[4].isnan()


def test_averages_skip_empty_and_ineligible_groups():
    acc = torch.tensor([[0.5, NAN, 0.9, 0.1], [1.0, NAN, 0.0, 0.2]], dtype=torch.float64)
    eligible = torch.tensor([True, True, True, False])
    assert balanced_accuracy(acc).tolist() == pytest.approx([0.5, 0.4])
    assert worst_group_accuracy(acc, eligible).tolist() == [0.5, 0.0]
    assert worst_group_accuracy(acc, torch.tensor([False, True, False, False])).isnan().all()


def test_reweighted_accuracy_follows_the_weights_and_refuses_a_missing_part():
    acc = torch.tensor([0.5, NAN, 1.0], dtype=torch.float64)
    assert float(reweighted_accuracy(acc, torch.tensor([30, 0, 10]))) == pytest.approx(0.625)
    assert reweighted_accuracy(acc, torch.tensor([30, 1, 10])).isnan()


def test_wilson_interval_equals_published_values_and_is_nan_without_rows():
    low, high = wilson_interval(torch.tensor([0, 81, 10, 0]), torch.tensor([10, 263, 10, 0]))
    # Newcombe (1998), table I: 81/263 gives 0.2553 to 0.3662; 0/n gives 0 to z^2 / (n + z^2).
    assert low[:3].tolist() == pytest.approx([0, 0.2553, 0.7225], abs=5e-5)
    assert high[:3].tolist() == pytest.approx([0.2775, 0.3662, 1], abs=5e-5)
    assert low[3].isnan()
    assert high[3].isnan()


def test_calibration_error_equals_a_plain_loop_and_ignores_the_order_of_ties():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(300, generator=generator, dtype=torch.float64)
    correct = torch.rand(300, generator=generator) < confidence.square()
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True))
    bins = [pairs[i : i + 20] for i in range(0, 300, 20)]
    expected = sum(abs(sum(p - c for p, c in rows)) for rows in bins) / 300
    assert calibration_error(confidence, correct) == pytest.approx(expected)
    tied = (confidence * 4).round() / 4
    order = torch.randperm(300, generator=generator)
    assert calibration_error(tied, correct) == pytest.approx(
        calibration_error(tied[order], correct[order])
    )
    assert calibration_error(torch.ones(100), torch.arange(100) < 70) == pytest.approx(0.3)
    assert math.isnan(calibration_error(confidence[:99], correct[:99]))


def test_bootstrap_is_paired_stratified_and_leaves_the_global_state_alone():
    correct, group = _rows()
    state = torch.get_rng_state()
    both = torch.stack([correct, correct, ~correct])
    draws = bootstrap_accuracies(both, group, 6, draws=500, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert draws.shape == (500, 3, 6)
    assert draws[..., 4].isnan().all()
    torch.testing.assert_close(draws[:, 0], draws[:, 1], equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(draws[:, 0], 1 - draws[:, 2], equal_nan=True, rtol=0, atol=1e-12)
    again = bootstrap_accuracies(both, group, 6, draws=500, seed=3)
    torch.testing.assert_close(draws, again, equal_nan=True, rtol=0, atol=0)
    acc, n = group_accuracies(correct, group, 6), torch.bincount(group, minlength=6)
    spread = (acc * (1 - acc) / n).sqrt()
    centred = (draws[:, 0].mean(0) - acc) / spread
    assert centred[~centred.isnan()].abs().max() < 5 / math.sqrt(500)
    ratio = (draws[:, 0].std(0) / spread)[~acc.isnan()]
    assert (ratio - 1).abs().max() < 0.15


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(200) % 4
    truth = torch.tensor([0.5, 0.6, 0.7, 0.8])
    covered = 0
    for trial in range(300):
        correct = torch.rand(200, generator=generator) < truth[group]
        draws = bootstrap_accuracies(correct[None], group, 4, draws=400, seed=trial)
        low, high = interval(balanced_accuracy(draws[:, 0]))
        covered += int(low <= truth.mean().double() <= high)
    assert 0.90 <= covered / 300 <= 0.99


def test_bootstrap_of_many_groups_is_fast():
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(0, 100, (5000,), generator=generator)
    correct = torch.rand(2, 5000, generator=generator) < 0.8
    start = time.perf_counter()
    bootstrap_accuracies(correct, group, 100, draws=2000, seed=0)
    assert time.perf_counter() - start < 2


def test_interval_is_the_percentiles_of_each_column():
    draws = torch.arange(1001.0).double()[:, None] * torch.tensor([1.0, 2.0, NAN])
    low, high = interval(draws)
    assert low[:2].tolist() == pytest.approx([25, 50])
    assert high[:2].tolist() == pytest.approx([975, 1950])
    assert low[2].isnan()


def _reference_pulls(predicted, target, bias, num_classes, num_values, critical=2.3263):
    pulls = []
    for b in range(num_values):
        best = (0.0, -1)
        for t in range(num_classes):
            rows = [
                (p == t, v == b) for p, y, v in zip(predicted, target, bias, strict=True) if y != t
            ]
            own, other = [h for h, m in rows if m], [h for h, m in rows if not m]
            rate = sum(h for h, _ in rows) / len(rows) if rows else 0
            if own and other and 0 < rate < 1:
                error = math.sqrt(rate * (1 - rate) * (1 / len(own) + 1 / len(other)))
                z = (sum(own) / len(own) - sum(other) / len(other)) / error
                if z > critical:
                    best = max(best, (sum(own) / len(own) - rate, t))
        pulls.append(best[1])
    return pulls


def test_pulled_targets_equal_a_plain_loop_on_small_skewed_sets():
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(40):
        bias = torch.randint(0, 3, (60,), generator=generator)
        own = torch.randint(0, 3, (60,), generator=generator)
        target = torch.where(torch.rand(60, generator=generator) < 0.6, bias, own)
        predicted = torch.where(torch.rand(60, generator=generator) < 0.5, bias, own)
        args = predicted, target, bias
        pulls = pulled_targets(*args, 3, 3).tolist()
        assert pulls == _reference_pulls(*(x.tolist() for x in args), 3, 3)
        found += sum(t >= 0 for t in pulls)
    assert 20 < found < 100


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.8])
def test_pulled_targets_equal_a_plain_loop(strength):
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, 3, (400,), generator=generator)
    bias = torch.randint(0, 4, (400,), generator=generator)
    bias[bias == 3] = 0
    toward = torch.tensor([2, 0, 2, 1])[bias]
    predicted = torch.where(torch.rand(400, generator=generator) < strength, toward, target)
    args = predicted, target, bias
    pulls = pulled_targets(*args, 3, 4)
    assert pulls.tolist() == _reference_pulls(*(x.tolist() for x in args), 3, 4)
    if strength == 0.8:
        assert pulls.tolist() == [2, 0, 2, -1]
    if strength == 0:
        assert pulls.tolist() == [-1] * 4
