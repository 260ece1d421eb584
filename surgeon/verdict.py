"""Whether an operation helped: a paired bootstrap and one of four words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.metrics import (
    balanced_accuracy,
    bootstrap_accuracies,
    group_accuracies,
    interval,
    worst_group_accuracy,
)


@dataclass(frozen=True)
class Difference:
    """Edited less base, as a fraction, with its 95 % interval; NaN where undefined."""

    difference: float
    low: float
    high: float

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0

    def to_json(self) -> dict[str, float | None]:
        """Return the three figures, NaN as None."""
        figures = {"difference": self.difference, "low": self.low, "high": self.high}
        return {name: None if math.isnan(x) else x for name, x in figures.items()}


@dataclass(frozen=True)
class Verdict:
    """One of four words, with the differences it rests on.

    Attributes:
        word: "improved", "worse", "nothing to remove" or "no significant change".
        against: Name of the operation compared with.
        worst_group: Difference of the worst-group accuracies.
        balanced: Difference of the balanced accuracies.
        aligned_by: Who decided which target a bias value pulls toward, as handed in.
        reason: One sentence.
        seed: Of the bootstrap.
    """

    word: str
    against: str
    worst_group: Difference
    balanced: Difference
    aligned_by: str | Mapping[str, str]
    reason: str
    seed: int

    def to_json(self) -> dict[str, object]:
        """Return the verdict as report.json holds it."""
        aligned_by = self.aligned_by
        return {
            "word": self.word,
            "against": self.against,
            "worst_group": self.worst_group.to_json(),
            "balanced": self.balanced.to_json(),
            "aligned_by": aligned_by if isinstance(aligned_by, str) else dict(aligned_by),
            "reason": self.reason,
            "seed": self.seed,
        }


def compare(
    base_correct: Tensor,
    edited_correct: Tensor,
    group: Tensor,
    num_groups: int,
    *,
    min_group: int,
    draws: int = 2000,
    seed: int,
) -> tuple[Difference, Difference]:
    """Compare two operations on the same rows by a paired bootstrap stratified by group.

    Args:
        base_correct: `[N]` bool, of the operation compared with.
        edited_correct: `[N]` bool, of the operation judged.
        group: `[N]` int64, values 0..G-1.
        num_groups: G.
        min_group: Rows a group needs to be eligible as the worst.
        draws: Number of bootstrap draws.
        seed: Of the bootstrap.

    Returns:
        The differences, edited less base, of worst-group and of balanced accuracy. The worst
        group is found anew for each side and each draw; its figures are NaN when no group is
        eligible.
    """
    sides = torch.stack([base_correct, edited_correct])
    acc = torch.stack([group_accuracies(side, group, num_groups) for side in sides])
    drawn = bootstrap_accuracies(sides, group, num_groups, draws=draws, seed=seed)
    eligible = torch.bincount(group, minlength=num_groups) >= min_group

    def difference(observed: Tensor, resampled: Tensor) -> Difference:
        low, high = interval(resampled[:, 1] - resampled[:, 0])
        return Difference(float(observed[1] - observed[0]), float(low), float(high))

    worst = difference(worst_group_accuracy(acc, eligible), worst_group_accuracy(drawn, eligible))
    return worst, difference(balanced_accuracy(acc), balanced_accuracy(drawn))


def judge(
    base: Tensor,
    edited: Tensor,
    group: Tensor,
    num_groups: int,
    *,
    min_group: int,
    gap_intervals: Sequence[tuple[float, float] | None],
    leaks: Sequence[tuple[float, float, float]],
    aligned_by: str | Mapping[str, str],
    against: str = "vanilla",
    seed: int,
) -> Verdict:
    """Judge an operation against another one on the same rows.

    In this order: "improved" if the worst-group interval lies above 0 and the balanced one not
    below; "worse" if either lies below; "nothing to remove" if no gap of the base differs from
    0 and its logits leak no bias beyond chance; else "no significant change".

    Args:
        base: `[N]` bool, correct rows of the operation compared with.
        edited: `[N]` bool, correct rows of the operation judged.
        group: `[N]` int64, values 0..G-1.
        num_groups: G.
        min_group: Rows a group needs to be eligible as the worst.
        gap_intervals: For each bias the base's interval (low, high), None where there is no gap.
        leaks: For each probe of the base's logits (low, high, chance). If none was run, nothing
            is known about leakage and the word is never "nothing to remove".
        aligned_by: Who decided which target a bias value pulls toward.
        against: Name of the base.
        seed: Of the bootstrap.

    Returns:
        The verdict, with the reason in one sentence.
    """
    worst, balanced = compare(base, edited, group, num_groups, min_group=min_group, seed=seed)
    no_gap = all(span is None or span[0] <= 0 <= span[1] for span in gap_intervals)
    no_leak = bool(leaks) and all(low <= chance for low, _, chance in leaks)
    if worst.above and not balanced.below:
        word, reason = "improved", "the worst-group interval lies above 0"
    elif worst.below or balanced.below:
        names = [n for n, d in (("worst-group", worst), ("balanced", balanced)) if d.below]
        word = "worse"
        reason = f"the {' and the '.join(names)} accuracy interval lies below 0"
    elif no_gap and no_leak:
        word = "nothing to remove"
        reason = f"{against} shows no gap, and its logits leak no bias beyond chance"
    else:
        word = "no significant change"
        reason = "the worst-group interval contains 0"
    if math.isnan(worst.difference):
        lack = f"no group has at least {min_group} rows, so there is no worst group"
        reason = lack if word == "no significant change" else f"{reason}; {lack}"
    return Verdict(word, against, worst, balanced, aligned_by, reason, seed)
