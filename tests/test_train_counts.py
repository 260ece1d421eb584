from __future__ import annotations

import pytest
import torch

from surgeon.errors import LabelError
from surgeon.groups import Groups
from surgeon.train_counts import read_train_counts


@pytest.fixture
def groups():
    biases = torch.tensor([[0, 0, 1], [1, 1, 0]])
    return Groups(
        torch.tensor([0, 1]),
        biases,
        ("cat", "dog"),
        ("place", "hue", "age"),
        (("land", "sea"), ("red", "sea"), ("old", "young")),
        ("age",),
    )


def write(tmp_path, *lines):
    path = tmp_path / "counts.csv"
    path.write_text("\n".join(("hue,target,place,count", *lines)) + "\n")
    return path


def test_rows_in_any_order_and_absent_groups_count_zero(tmp_path, groups):
    path = write(tmp_path, "sea,dog,land,7", "red,cat,land,30", "sea,cat,land,0")
    counts = read_train_counts(path, groups)
    assert counts.dtype == torch.float64
    expected = torch.zeros(8)
    expected[groups.index[0]] = 30  # cat, land, red
    expected[5] = 7  # dog, land, sea
    assert torch.equal(counts.float(), expected)
    assert groups.names(5) == ("dog", {"place": "land", "hue": "sea"})


def test_every_fault_is_listed(tmp_path, groups):
    lines = [
        "red,cat,land,3",
        "red,cat,land,4",
        "blue,cat,land,1",
        "red,dog,sea,-1",
        "sea,dog,sea,٣",
    ]
    with pytest.raises(LabelError) as caught:
        read_train_counts(write(tmp_path, *lines), groups)
    text = str(caught.value)
    for row, what in [(3, "given twice"), (4, "no such group"), (5, "'-1'"), (6, "whole number")]:
        assert any(f"row {row}" in line and what in line for line in text.splitlines()), text


def test_all_zero_is_refused(tmp_path, groups):
    with pytest.raises(LabelError, match="every count is zero"):
        read_train_counts(write(tmp_path, "red,cat,land,0"), groups)
