"""Time two things in turn, so that what slows the machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Paired:
    """Median times of two things that were run in turn."""

    first_s: float
    second_s: float
    ratio: float
    """Median of first / second, pair by pair."""
    low: float
    """First quartile of the ratios."""
    high: float
    """Third quartile."""


def time_pairs(
    first: Callable[[], None],
    second: Callable[[], None],
    *,
    pairs: int,
    device: torch.device,
    warm: int = 3,
) -> Paired:
    """Run two things in turn and time each run.

    Args:
        first: Does one piece of work.
        second: Does the other.
        pairs: Timed runs of each.
        device: Where they run; CUDA is waited for.
        warm: Runs of each before, which are not timed.
    """
    for work in (first, second) * warm:
        work()
    times = [(_seconds(first, device), _seconds(second, device)) for _ in range(pairs)]
    ratios = sorted(one / other for one, other in times)
    return Paired(
        first_s=median(one for one, _ in times),
        second_s=median(other for _, other in times),
        ratio=median(ratios),
        low=ratios[len(ratios) // 4],
        high=ratios[3 * len(ratios) // 4],
    )


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
