"""Groups by what their bias values pull toward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from surgeon.benchmarks.alignment import by_alignment, own_values
from tests.tiny_bench import SETTING, tiny_set


def test_groups_by_alignment_by_hand():
    own = {"left": {"0": "a", "1": "b"}, "right": {"0": "c", "1": "c"}}
    rows = [
        *(("0", "a", "c", 10, 0.9), ("1", "b", "c", 30, 0.7), ("0", "a", "d", 4, 0.5)),
        *(("0", "b", "c", 0, None), ("1", "a", "c", 5, 0.2), ("1", "a", "d", 8, 0.125)),
    ]
    groups = [
        {"target": t, "bias": {"left": x, "right": y}, "n": n, "accuracy": a}
        for t, x, y, n, a in rows
    ]
    found = by_alignment(groups, own)
    assert [(g["aligned"]["left"], g["aligned"]["right"], g["n"]) for g in found["groups"]] == [
        *((True, True, 40), (True, False, 4), (False, True, 5), (False, False, 8)),
    ]
    accuracies = [group["accuracy"] for group in found["groups"]]
    assert accuracies == pytest.approx([0.75, 0.5, 0.2, 0.125])
    assert found["mean"] == pytest.approx(0.39375)
    assert found["gap"]["left"] == pytest.approx(32 / 44 - 2 / 13)
    assert found["gap"]["right"] == pytest.approx(31 / 45 - 3 / 12)
    alone = by_alignment(groups[:2], own)
    assert alone["mean"] is None
    assert alone["gap"] == {"left": None, "right": None}


def test_own_values_are_those_of_the_training_rows():
    bench = tiny_set(SETTING)
    assert own_values(bench) == {"ground": {"up": "red", "down": "blue"}}
    biases = torch.zeros_like(bench.train.biases)
    shared = replace(bench, train=replace(bench.train, biases=biases))
    assert own_values(shared) == {"ground": {"up": "red", "down": "red"}}
