from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from surgeon.errors import LabelError
from surgeon.groups import Groups, Labels
from surgeon.splits import split_rows


def make(cells, split=None):
    n = len(cells)
    groups = Groups(
        torch.tensor([t for t, _ in cells]),
        torch.tensor([[b] for _, b in cells]),
        ("cat", "dog"),
        ("bias",),
        (("x", "y"),),
    )
    paths = tuple(Path(f"{row}.png") for row in range(n))
    return Labels(Path("val.csv"), paths, groups, split, tuple(range(2, n + 2)), ())


def parts(digests, cells, split=None):
    found = split_rows(digests, make(cells, split))
    return [part.tolist() for part in (found.fit, found.select, found.report)]


cells = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=5, max_size=60)


@given(cells, st.randoms(use_true_random=False), st.integers(1, 60))
def test_partition_with_duplicates_together_whatever_the_order(cells, random, kinds):
    digests = [bytes([random.randrange(kinds)]) for _ in cells]
    try:
        fit, select, report = parts(digests, cells)
    except LabelError:
        assume(False)
    assert sorted(fit + select + report) == list(range(len(cells)))
    assert fit == sorted(fit)
    of = {
        row: name for name, rows in zip("fsr", (fit, select, report), strict=True) for row in rows
    }
    assert len({(digests[row], of[row]) for row in of}) == len(set(digests))
    order = list(range(len(cells)))
    random.shuffle(order)
    shuffled = parts([digests[row] for row in order], [cells[row] for row in order])
    assert [sorted(order[row] for row in rows) for rows in shuffled] == [fit, select, report]
    for group in range(4):
        rows = [row for row, (t, b) in enumerate(cells) if 2 * t + b == group]
        if 0 < len(rows) < 3:
            assert all(of[row] == "r" for row in rows)


@given(cells)
def test_proportions_within_each_group(cells):
    digests = [bytes([row]) for row in range(len(cells))]
    try:
        found = parts(digests, cells)
    except LabelError:
        assume(False)
    for group in set(cells):
        n = cells.count(group)
        shares = [sum(cells[row] == group for row in part) for part in found]
        if n < 3:
            assert shares == [0, 0, n]
        else:
            assert min(shares) >= 1
            for share, part in zip(shares, (0.6, 0.2, 0.2), strict=True):
                assert abs(share - part * n) < 1


def test_order_is_by_digest():
    assert parts([b"5", b"3", b"1", b"2", b"4"], [(0, 0)] * 5) == [[1, 2, 3], [4], [0]]


def test_the_column_is_followed():
    split = ("report", "fit", "select", "fit")
    assert parts([b"1", b"2", b"3", b"2"], [(0, 0)] * 4, split) == [[1, 3], [2], [0]]


@pytest.mark.parametrize(
    ("cells", "split", "message"),
    [
        ([(0, 0), (1, 1)], None, r"fit and select would have no row of 2; add rows"),
        ([(0, 0)] * 3, ("fit", "fit", "report"), r"select would have no row.*split column"),
    ],
)
def test_no_part_is_empty(cells, split, message):
    with pytest.raises(LabelError, match=message):
        parts([bytes([row]) for row in range(len(cells))], cells, split)


def test_equal_images_in_two_parts_of_the_column_are_listed():
    split = ("fit", "select", "report", "fit")
    with pytest.raises(LabelError, match=r"1 images.*\n  equal images in rows 2 \(fit\), 4 \(rep"):
        parts([b"1", b"2", b"1", b"4"], [(0, 0)] * 4, split)
