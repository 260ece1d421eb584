from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from surgeon.mutual_information import (
    conditional_mutual_information,
    finite_sample_floor,
    mutual_information,
)


def _case(n=60, values=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, values, generator=generator, dtype=torch.float64)
    return logits.softmax(1), torch.randint(0, values, (n,), generator=generator)


def test_equals_the_definition():
    probabilities, labels = _case()
    table = [[0.0] * 4 for _ in range(4)]
    for p, b in zip(probabilities.tolist(), labels.tolist(), strict=True):
        table[b] = [x + y / 60 for x, y in zip(table[b], p, strict=True)]
    rows, columns = [sum(r) for r in table], [sum(c) for c in zip(*table, strict=True)]
    cells = [(table[i][j], rows[i] * columns[j]) for i in range(4) for j in range(4)]
    expected = sum(p * math.log(p / q) for p, q in cells) / math.log(4)
    assert float(mutual_information(probabilities, labels, 4)) == pytest.approx(expected)
    assert expected > 0


def test_is_zero_exactly_when_predictions_and_labels_are_independent():
    same, labels = _case(1)[0].expand(60, 4), _case()[1]
    assert float(mutual_information(same, labels, 4)) == pytest.approx(0, abs=1e-12)
    shifted = same.clone()
    shifted[labels == 1] = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    assert float(mutual_information(shifted, labels, 4)) > 1e-3
    # Rows may differ as long as their mean is the same for every label.
    labels = torch.arange(60) % 2
    mixed = one_hot((torch.arange(60) // 2) % 3, 4).double()
    assert float(mutual_information(mixed, labels, 2)) == pytest.approx(0, abs=1e-12)


def test_is_one_for_a_perfect_prediction_of_a_uniform_label_and_ignores_names():
    labels = torch.arange(60) % 4
    for names in ([0, 1, 2, 3], [2, 0, 3, 1]):
        probabilities = one_hot(torch.tensor(names)[labels], 4)
        for dtype in (torch.float32, torch.float64):
            value = mutual_information(probabilities.to(dtype), labels, 4)
            assert float(value) == pytest.approx(1, abs=1e-6)
    probabilities, labels = _case()
    renamed = mutual_information(probabilities[:, [2, 0, 3, 1]], (labels + 1) % 4, 4)
    torch.testing.assert_close(renamed, mutual_information(probabilities, labels, 4))


def test_weights_count_as_repeated_rows():
    probabilities, labels = _case()
    weights = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(1))
    rows = torch.arange(60).repeat_interleave(weights)
    torch.testing.assert_close(
        mutual_information(probabilities, labels, 4, weights=weights),
        mutual_information(probabilities[rows], labels[rows], 4),
    )


def test_gradient_is_right():
    logits = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, condition = torch.arange(12) % 3, torch.arange(12) // 6
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mutual_information(z.softmax(1), labels, 3), logits)
    assert torch.autograd.gradcheck(
        lambda z: conditional_mutual_information(z.softmax(1), labels, condition, 3, 2), logits
    )


def test_gradient_stays_finite_for_saturated_predictions():
    logits = (one_hot(torch.arange(8) % 2, 2).float() * 500).requires_grad_()
    mutual_information(logits.softmax(1), torch.arange(8) % 2, 2).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_conditional_is_the_weighted_mean_over_the_condition():
    probabilities, labels = _case()
    condition = (torch.arange(60) % 5).clamp_max(2)
    parts = [condition == y for y in range(3)]
    expected = sum(
        rows.sum() / 60 * mutual_information(probabilities[rows], labels[rows], 4) for rows in parts
    )
    value = conditional_mutual_information(probabilities, labels, condition, 4, 4)
    torch.testing.assert_close(value, expected)
    # A prediction of the condition tells nothing more, however much it tells of the label.
    condition = torch.arange(60) % 2
    told = one_hot(condition, 2).double()
    assert float(mutual_information(told, condition, 2)) == pytest.approx(1)
    given = conditional_mutual_information(told, condition, condition, 2, 2)
    assert float(given) == pytest.approx(0, abs=1e-12)


def test_floor_is_what_independent_predictions_read():
    generator = torch.Generator().manual_seed(0)
    reads = []
    for _ in range(40):
        predicted = one_hot(torch.randint(0, 10, (1000,), generator=generator), 10).double()
        labels = torch.randint(0, 10, (1000,), generator=generator)
        reads.append(float(mutual_information(predicted, labels, 10)))
    assert finite_sample_floor(1000, 10) == pytest.approx(sum(reads) / 40, rel=0.1)
    assert finite_sample_floor(1000, 10) == pytest.approx(0.01759, abs=1e-5)


def test_a_label_with_one_value_holds_no_information():
    assert float(mutual_information(torch.ones(5, 1), torch.zeros(5).long(), 1)) == 0
    assert finite_sample_floor(5, 1) == 0
