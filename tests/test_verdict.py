from __future__ import annotations

import json
import math

import pytest
import torch

from surgeon.verdict import Difference, compare, judge

SETTINGS = {"min_group": 10, "aligned_by": "model", "seed": 0}
NO_GAP, GAP = [(-0.02, 0.03)], [(0.2, 0.4)]
CLEAN, LEAKY = [(0.45, 0.55, 0.5)], [(0.7, 0.8, 0.5)]


def _correct(rates, n=200):
    return torch.cat([torch.arange(n) % 100 < 100 * rate for rate in rates])


def _group(count=4, n=200):
    return torch.arange(count).repeat_interleave(n)


def _judge(base, edited, gaps=GAP, leaks=LEAKY, **changes):
    group = _group(len(base))
    return judge(
        _correct(base),
        _correct(edited),
        group,
        len(base),
        gap_intervals=gaps,
        leaks=leaks,
        **(SETTINGS | changes),
    )


def test_compare_equals_plain_differences_and_pairs_the_rows():
    base, edited = _correct([0.9, 0.3, 0.5, 0.9]), _correct([0.8, 0.7, 0.6, 0.9])
    worst, balanced = compare(base, edited, _group(), 4, min_group=10, seed=0)
    assert worst.difference == pytest.approx(0.3)
    assert balanced.difference == pytest.approx(0.1)
    assert worst.low < 0.3 < worst.high
    same = compare(base, base, _group(), 4, min_group=10, seed=0)
    assert same == (Difference(0, 0, 0), Difference(0, 0, 0))
    order = torch.randperm(800)
    assert compare(base[order], edited[order], _group()[order], 4, min_group=10, seed=0) == (
        worst,
        balanced,
    )


def test_compare_ignores_small_groups_as_worst_and_empty_ones_altogether():
    group = torch.cat([_group(2), torch.full((9,), 3)])
    base = torch.cat([_correct([0.9, 0.5]), torch.zeros(9).bool()])
    edited = torch.cat([_correct([0.9, 0.6]), torch.zeros(9).bool()])
    worst, balanced = compare(base, edited, group, 4, min_group=10, seed=0)
    assert worst.difference == pytest.approx(0.1)
    assert balanced.difference == pytest.approx(0.1 / 3)


@pytest.mark.parametrize(
    ("base", "edited", "gaps", "leaks", "word"),
    [
        ([0.9, 0.3], [0.9, 0.6], GAP, LEAKY, "improved"),
        # Both worst and balanced rise: what there was to remove does not matter.
        ([0.9, 0.3], [0.9, 0.6], NO_GAP, CLEAN, "improved"),
        # The worst group gains, the mean over groups loses.
        ([0.95, 0.95, 0.95, 0.3], [0.6, 0.6, 0.6, 0.5], GAP, LEAKY, "worse"),
        ([0.9, 0.6], [0.95, 0.3], NO_GAP, CLEAN, "worse"),
        ([0.9, 0.9], [0.9, 0.9], NO_GAP, CLEAN, "nothing to remove"),
        ([0.9, 0.9], [0.9, 0.9], [None], CLEAN, "nothing to remove"),
        ([0.9, 0.9], [0.9, 0.9], GAP, CLEAN, "no significant change"),
        ([0.9, 0.9], [0.9, 0.9], NO_GAP, LEAKY, "no significant change"),
        ([0.9, 0.9], [0.9, 0.9], [*NO_GAP, *GAP], CLEAN, "no significant change"),
        ([0.9, 0.9], [0.9, 0.9], NO_GAP, [(math.nan, math.nan, 0.5)], "no significant change"),
        ([0.9, 0.9], [0.9, 0.9], NO_GAP, [], "no significant change"),
        ([0.90, 0.50], [0.90, 0.51], GAP, LEAKY, "no significant change"),
    ],
)
def test_word(base, edited, gaps, leaks, word):
    verdict = _judge(base, edited, gaps, leaks)
    assert verdict.word == word
    assert verdict.reason


@pytest.mark.parametrize(
    ("edited", "gaps", "leaks", "word"),
    [
        ([0.9, 0.6], GAP, LEAKY, "no significant change"),
        ([0.3, 0.3], GAP, LEAKY, "worse"),
        ([0.9, 0.3], NO_GAP, CLEAN, "nothing to remove"),
    ],
)
def test_without_an_eligible_group_the_word_rests_on_the_rest_and_says_so(
    edited, gaps, leaks, word
):
    verdict = _judge([0.9, 0.3], edited, gaps, leaks, min_group=1000)
    assert verdict.word == word
    assert "no group has at least 1000 rows" in verdict.reason
    assert verdict.to_json()["worst_group"] == {"difference": None, "low": None, "high": None}


def test_json_holds_the_figures_and_the_seed():
    verdict = _judge([0.9, 0.3], [0.9, 0.6], aligned_by={"colour": "given"}, seed=7)
    data = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert list(data) == [
        "word",
        "against",
        "worst_group",
        "balanced",
        "aligned_by",
        "reason",
        "seed",
    ]
    assert data["against"] == "vanilla"
    assert data["aligned_by"] == {"colour": "given"}
    assert data["seed"] == 7
    assert data["worst_group"]["difference"] == pytest.approx(0.3)
    assert _judge([0.9, 0.3], [0.9, 0.6], seed=7) == _judge([0.9, 0.3], [0.9, 0.6], seed=7)


def test_a_paired_interval_covers_the_true_difference():
    generator = torch.Generator().manual_seed(0)
    group, covered = _group(2, 100), 0
    base_rate, edited_rate = torch.tensor([0.9, 0.4])[group], torch.tensor([0.9, 0.5])[group]
    for trial in range(150):
        luck = torch.rand(200, generator=generator)
        worst, _ = compare(
            luck < base_rate, luck < edited_rate, group, 2, min_group=10, draws=400, seed=trial
        )
        covered += worst.low <= 0.1 <= worst.high
    assert 0.89 <= covered / 150 <= 0.99
