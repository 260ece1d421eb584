from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgeon.groups import Groups


def make(target, biases, *, value_names, audited=()):
    columns = tuple(f"b{k}" for k in range(len(value_names)))
    return Groups(
        torch.tensor(target),
        torch.tensor(biases).reshape(len(target), len(value_names)),
        ("cat", "dog"),
        columns,
        value_names,
        audited,
    )


@given(st.lists(st.tuples(*[st.integers(0, top) for top in (1, 2, 1, 3)]), min_size=1))
def test_index_is_row_major_over_fitted_columns(rows):
    names = (("a", "b", "c"), ("x", "y"), ("p", "q", "r", "s"))
    groups = make([r[0] for r in rows], [r[1:] for r in rows], value_names=names, audited=("b2",))
    assert groups.fitted == (0, 1)
    assert groups.num_groups == 12
    expected = [(t * 3 + a) * 2 + b for t, a, b, _ in rows]
    assert groups.index.tolist() == expected
    assert groups.counts().tolist() == [expected.count(group) for group in range(12)]
    assert groups.cell(2).tolist() == [t * 4 + c for t, _, _, c in rows]
    for (t, a, b, _), group in zip(rows, expected, strict=True):
        assert groups.names(group) == (
            ("cat", "dog")[t],
            {"b0": names[0][a], "b1": names[1][b]},
        )


def test_empty_group_is_kept_and_take_keeps_numbers():
    groups = make([0, 1, 1], [[0], [1], [1]], value_names=(("x", "y"),))
    assert groups.counts().tolist() == [1, 0, 0, 2]
    some = groups.take(torch.tensor([2]))
    assert len(some) == 1
    assert some.counts().tolist() == [0, 0, 0, 1]
    assert some.names(3) == ("dog", {"b0": "y"})


def test_without_bias_columns_groups_are_classes():
    groups = make([0, 1, 1], [[], [], []], value_names=())
    assert groups.index.tolist() == [0, 1, 1]
    assert groups.names(1) == ("dog", {})


@pytest.mark.parametrize("bias", [2, -1])
def test_a_value_on_the_border_is_refused(bias):
    with pytest.raises(AssertionError):
        make([0], [[bias]], value_names=(("x", "y"),))
