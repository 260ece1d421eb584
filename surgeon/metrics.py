"""Accuracy by group, its named averages, and their intervals: pure tensor functions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_Z95 = 1.959963984540054
_CALIBRATION_ROWS = 100


def group_accuracies(correct: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return the share of correct rows in every group.

    Args:
        correct: `[N]` bool, True where the prediction is the target.
        group: `[N]` int64, values 0..G-1.
        num_groups: G, empty groups included.

    Returns:
        `[G]` float64, fraction in [0, 1], NaN for an empty group.
    """
    hits = torch.bincount(group, weights=correct.double(), minlength=num_groups)
    return hits / torch.bincount(group, minlength=num_groups)


def wilson_interval(successes: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 95 % Wilson score interval of a proportion.

    Args:
        successes: Any shape, counts.
        n: The same shape, counts of trials.

    Returns:
        Low and high, float64 fractions in [0, 1], NaN where n is 0.
    """
    n = n.double()
    share = successes.double() / n
    centre = share + _Z95**2 / (2 * n)
    half = _Z95 * torch.sqrt(share * (1 - share) / n + (_Z95 / (2 * n)) ** 2)
    scale = 1 + _Z95**2 / n
    return ((centre - half) / scale).clamp(0, 1), ((centre + half) / scale).clamp(0, 1)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equal mass.

    Equal confidences always share a bin, so the order of the rows does not matter.

    Args:
        confidence: `[N]` float, probability of the predicted class.
        correct: `[N]` bool.
        bins: Number of bins before ties are merged.

    Returns:
        Fraction in [0, 1]; NaN below 100 rows, where the figure is mostly noise.
    """
    n = len(confidence)
    if n < _CALIBRATION_ROWS:
        return math.nan
    confidence = confidence.double()
    starts = torch.arange(1, bins, device=confidence.device) * n // bins
    edges = confidence.sort().values[starts].unique()
    place = torch.bucketize(confidence, edges, right=True)
    surplus = torch.bincount(place, weights=confidence - correct.double(), minlength=bins)
    return float(surplus.abs().sum() / n)


def balanced_accuracy(acc: Tensor) -> Tensor:
    """Return the mean accuracy over the groups that have rows.

    Args:
        acc: `[..., G]` fractions, NaN for an empty group.

    Returns:
        `[...]` fraction in [0, 1], NaN when every group is empty.
    """
    return acc.nanmean(dim=-1)


def worst_group_accuracy(acc: Tensor, eligible: Tensor) -> Tensor:
    """Return the lowest accuracy among the eligible groups.

    Args:
        acc: `[..., G]` fractions, NaN for an empty group.
        eligible: `[G]` bool, True for groups with enough rows to count.

    Returns:
        `[...]` fraction in [0, 1], NaN when no group is eligible.
    """
    lowest = acc.where(eligible & ~acc.isnan(), math.inf).amin(dim=-1)
    return lowest.where(lowest.isfinite(), math.nan)


def reweighted_accuracy(acc: Tensor, weights: Tensor) -> Tensor:
    """Return the accuracy with every group weighted by its share of another population.

    Args:
        acc: `[..., G]` fractions, NaN for an empty group.
        weights: `[G]` counts or shares, >= 0; a group of weight 0 is left out.

    Returns:
        `[...]` fraction in [0, 1]; NaN when a group that carries weight has no rows, because
        its part of the average is unknown.
    """
    weights = weights.double()
    return (acc * weights).where(weights > 0, 0.0).sum(dim=-1) / weights.sum()


def bootstrap_accuracies(
    correct: Tensor, group: Tensor, num_groups: int, *, draws: int = 2000, seed: int
) -> Tensor:
    """Resample the rows within every group and return the accuracies of each draw.

    The same rows are drawn for all R predictions, so their differences are paired. Rows that
    agree on all R outcomes are exchangeable, so only the counts of outcome patterns are drawn:
    one multinomial for each group and draw, the exact law of drawing rows with replacement.

    Args:
        correct: `[R, N]` bool, one row for each set of predictions to compare.
        group: `[N]` int64, values 0..G-1.
        num_groups: G.
        draws: Number of bootstrap draws.
        seed: Of a generator of its own; the global state is not touched.

    Returns:
        `[draws, R, G]` float64, NaN for an empty group.
    """
    patterns, pattern = torch.unique(correct, dim=1, return_inverse=True)
    kinds = patterns.shape[1]
    joint = torch.bincount(group * kinds + pattern, minlength=num_groups * kinds)
    counts = joint.view(num_groups, kinds).cpu().numpy()
    n = counts.sum(axis=1)
    shares = np.where(n[:, None] > 0, counts / np.maximum(n, 1)[:, None], 1 / kinds)
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=(draws, num_groups))
    hits = torch.from_numpy(drawn).double() @ patterns.double().cpu().T
    return (hits / torch.from_numpy(n)[:, None]).transpose(1, 2)


def interval(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 2.5 and 97.5 percentiles over bootstrap draws.

    Args:
        draws: `[draws, ...]` floats.

    Returns:
        Low and high, each `[...]`; NaN where any draw is NaN.
    """
    low, high = torch.quantile(draws, draws.new_tensor([0.025, 0.975]), dim=0)
    return low, high


def pulled_targets(
    predicted: Tensor,
    target: Tensor,
    bias: Tensor,
    num_classes: int,
    num_values: int,
    *,
    p: float = 0.01,
) -> Tensor:
    """Return the target toward which each bias value pulls the predictions.

    Among the rows not of target t, the rise of t under bias value b is the rate at which b's
    rows are predicted t, less the rate over all those rows. A rise counts if a one-sided
    two-proportion z test of b's rows against the others is significant; the largest one wins.

    Args:
        predicted: `[N]` int64, values 0..C-1.
        target: `[N]` int64, values 0..C-1.
        bias: `[N]` int64, values 0..B-1.
        num_classes: C.
        num_values: B.
        p: Level of the test, fraction in (0, 1).

    Returns:
        `[B]` int64, values 0..C-1, or -1 where no rise is significant.
    """
    shape = (num_classes, num_values, num_classes)
    cell = (target * num_values + bias) * num_classes + predicted
    table = torch.bincount(cell, minlength=math.prod(shape)).view(shape).double()
    own = table.diagonal(dim1=0, dim2=2)
    hits = table.sum(dim=0) - own
    rows = table.sum(dim=(0, 2))[:, None] - table.sum(dim=2).T
    all_hits, all_rows = hits.sum(dim=0), rows.sum(dim=0)
    rate = all_hits / all_rows
    rise = hits / rows - rate
    others = (all_hits - hits) / (all_rows - rows)
    error = torch.sqrt(rate * (1 - rate) * (1 / rows + 1 / (all_rows - rows)))
    # 0/0 (no rows, or a rate of exactly 0 or 1) gives NaN, which compares as not significant.
    critical = torch.special.ndtri(torch.tensor(1 - p, dtype=torch.float64))
    significant = (hits / rows - others) / error > critical
    best = rise.where(significant, -math.inf).max(dim=1)
    return best.indices.where(best.values.isfinite(), -1)
