"""Who gets which bias value, and which rows are drawn: exact counts, local seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def colour_labels(
    target: np.ndarray, rho: float, rng: np.random.Generator, *, num_values: int = 10
) -> np.ndarray:
    """Deal values by count: in each class floor(n rho) its own, the rest to the others in chunks.

    Args:
        target: `[N]` classes 0..num_values - 1.
        rho: Share of a class that keeps its own value, in [0, 1].
        rng: Orders the rows of a class, and the other values.
        num_values: Values; class i owns value i.

    Returns:
        `[N]` values, of the type of `target`.

    Source:
        ReBias's generator (Biased MNIST), with a local seed instead of numpy's global one.
    """
    values = np.empty_like(target)
    for own in range(num_values):
        rows = rng.permutation(np.flatnonzero(target == own))
        kept = int(len(rows) * rho)
        values[rows[:kept]] = own
        rest = rows[kept:]
        size = -(-len(rest) // (num_values - 1))
        others = rng.permutation([value for value in range(num_values) if value != own])
        for i, other in enumerate(others):
            values[rest[i * size : (i + 1) * size]] = other
    return values


def own_shares(rho: float, num_values: int = 10) -> np.ndarray:
    """Return `[C, B]` shares: `rho` on the diagonal, the rest of a row spread evenly."""
    own = np.eye(num_values)
    return rho * own + (1 - rho) / (num_values - 1) * (1 - own)


def block_labels(target: np.ndarray, *shares: np.ndarray) -> np.ndarray:
    """Deal joint values in contiguous blocks of each class, in the order of the rows.

    With K biases the share of a cell is the product of its K shares; a class's blocks end at the
    rounded cumulative shares of its size, so that counts are exact and nothing is drawn.

    Args:
        target: `[N]` classes 0..C-1.
        *shares: K matrices `[C, B_k]`, rows that sum to 1.

    Returns:
        `[N, K]` int64 values.

    Source:
        LfF's generator with one bias and DebiAN's with two. The order of the multiplications is
        theirs, since milestones that end in one half round by their last bits.
    """
    values = np.empty((len(target), len(shares)), np.int64)
    for own in np.unique(target):
        joint = shares[0][own]
        for share in shares[1:]:
            joint = np.multiply.outer(joint, share[own])
        rows = np.flatnonzero(target == own)
        ends = (len(rows) * np.cumsum(joint.ravel())).round()
        ends[-1] = len(rows)
        cells = np.searchsorted(ends, np.arange(len(rows)), side="right")
        values[rows] = np.stack(np.unravel_index(cells, joint.shape), axis=1)
    return values


def block_labels_of(
    target: np.ndarray, rows: np.ndarray, shares: Sequence[np.ndarray]
) -> np.ndarray:
    """Deal blocks to some rows of a data set in its own order, whatever order they come in.

    Args:
        target: `[N]` classes of the whole set.
        rows: `[n]` positions in any order.
        shares: As for `block_labels`.

    Returns:
        `[n, K]` int64 values, in the order of `rows`.
    """
    values = np.empty((len(rows), len(shares)), np.int64)
    place = np.argsort(rows)
    values[place] = block_labels(target[rows[place]], *shares)
    return values


def stratified_draw(target: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows without replacement, each class in its proportion.

    Args:
        target: `[N]` classes.
        num: Rows to draw; what rounding leaves over goes to the largest remainders.
        rng: Draws.

    Returns:
        `[num]` positions in random order.
    """
    classes, counts = np.unique(target, return_counts=True)
    exact = counts * num / len(target)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: num - quota.sum()]] += 1
    drawn = [
        rng.permutation(np.flatnonzero(target == own))[:size]
        for own, size in zip(classes, quota, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))


def draw_and_rest(
    target: np.ndarray, drawn: int, first: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows within the classes, and order the others so that the first are balanced too.

    Args:
        target: `[N]` classes.
        drawn: Rows to draw.
        first: Rows at the start of the others that are drawn within the classes.
        rng: Draws.

    Returns:
        The drawn positions and all others.
    """
    chosen = stratified_draw(target, drawn, rng)
    others = np.setdiff1d(np.arange(len(target)), chosen)
    core = others[stratified_draw(target[others], first, rng)]
    return chosen, np.concatenate([core, rng.permutation(np.setdiff1d(others, core))])
