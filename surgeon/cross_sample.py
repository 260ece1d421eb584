"""What pairs of images have in common: scores by random walks, and their information.

Source: Zhu and others, Learning bias-invariant representation by cross-sample mutual information
minimization (CSAD), ICCV 2021, eq. 5 to 9; eq. 9 here is above zero by 2 ln 2, so that scores that
tell nothing have none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Chance that the random walk goes on.
_RESTART = 0.5
_FLOOR = 1e-7


def random_walk(embeddings: Tensor, sharpness: Tensor) -> Tensor:
    """Return where random walks with restart from every image of a batch are found.

    Args:
        embeddings: `[n, E]` of length 1.
        sharpness: Scalar > 0, of the softmax over neighbours.

    Returns:
        `[n, n]`, rows sum to 1.
    """
    edges = (sharpness * embeddings @ embeddings.T).softmax(1)
    edges = (edges + edges.T) / 2
    alone = torch.eye(len(edges), device=edges.device, dtype=edges.dtype)
    walks = torch.linalg.solve(alone - _RESTART * edges, (1 - _RESTART) * alone)
    walks = (walks + walks.T) / 2
    return walks / walks.sum(1, keepdim=True)


def walk_likeness(first: Tensor, second: Tensor) -> Tensor:
    """Return how alike walk i of the first and walk j of the second are, `[n, n]` (eq. 8)."""
    logs = [walks.clamp_min(_FLOOR).log() for walks in (first, second)]
    return (first @ logs[1].T + logs[0] @ second.T) / 2


def pair_information(scores: Tensor, same: Tensor) -> Tensor:
    """Return what scores of pairs tell of which have the same bias, nats (eq. 9).

    It is 2 ln 2 - ln(1 + mean exp(-s) over same pairs) - ln(1 + mean exp(s) over the others):
    0 where all scores are 0, at most 2 ln 2.

    Args:
        scores: `[n, n]`.
        same: `[n, n]` bool.
    """
    parts = []
    for sign, pairs in ((-1, same), (1, ~same)):
        mean = (sign * scores).exp().where(pairs, 0.0).sum() / pairs.sum().clamp_min(1)
        parts.append(torch.log1p(mean))
    return 2 * math.log(2) - parts[0] - parts[1]
