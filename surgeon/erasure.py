"""Closed-form erasure of a concept from features, to be folded into the head."""

from __future__ import annotations

import math

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor
from torch.nn.functional import one_hot

from surgeon.edit import Erasure
from surgeon.groups import Groups

# Below this many rows per feature the sample covariance is shrunk.
_ROWS_PER_FEATURE = 10
# Directions whose variance is this far below the largest carry rounding noise only.
_RELATIVE_TOLERANCE = 1e-10


def fit_erasure(
    features: Tensor, groups: Groups, *, balance: bool = True, above_noise: bool = False
) -> Erasure:
    """Fit the least change of the features after which no linear reader finds the biases.

    With W = S_xx^(-1/2) and P the projection onto the columns of W S_xz, the map is
    r(z) = z - W^+ P W (z - mean); cov(r(z), bias) is zero on the fitted rows. Fitted bias columns
    are one-hot and concatenated.

    Args:
        features: `[N, D]` bottleneck features of the fit rows.
        groups: Their labels; audited columns are left out.
        balance: Weight rows so that groups count equally, which makes target and bias independent
            and keeps the target from being erased with the bias.
        above_noise: Erase no more directions than have a canonical correlation with the bias above
            the largest that independent rows would show. In few rows, or rows of which few count,
            the others are mostly chance, and erasing them costs the target and spares little.

    Returns:
        The erasure, of rank at most the sum of (B_k - 1).

    Source:
        Belrose and others, LEACE, 2023 (arXiv 2306.03819), theorem 4.2. We add row weights and,
        below ten rows per feature, Ledoit-Wolf shrinkage of S_xx, under which the covariance with
        the bias is still exactly zero. The bound of `above_noise` is the edge of the limiting
        spectrum of Wachter, The limiting empirical measure of multiple discriminant ratios,
        Annals of Statistics 1980, with Kish's effective number of rows.
    """
    x = features.double().cpu()
    concept = torch.cat(
        [one_hot(groups.biases[:, k], groups.num_values(k)).double() for k in groups.fitted], dim=1
    )
    weights = torch.ones(len(x), dtype=torch.float64)
    if balance:
        weights = groups.weights()
    weights = weights / weights.sum()
    mean = weights @ x
    scaled = weights.sqrt()[:, None]
    centred, coded = scaled * (x - mean), scaled * (concept - weights @ concept)
    covariance, cross = centred.T @ centred, centred.T @ coded
    spread = covariance.diagonal().clone()
    rank = None
    if above_noise:
        rank = _rank_above_noise(covariance, cross, coded.T @ coded, 1 / float(weights @ weights))
    if len(x) < _ROWS_PER_FEATURE * x.shape[1]:
        rows = (centred * len(x) ** 0.5).numpy()
        share = float(ledoit_wolf_shrinkage(rows, assume_centered=True))
        level = covariance.diagonal().mean()
        covariance = (1 - share) * covariance + share * level * torch.eye(x.shape[1]).double()
    erasure = _edit(covariance, cross, mean, rank)
    # A feature that never varies takes no part: rounding would write the bias into it.
    dead = spread <= _RELATIVE_TOLERANCE * spread.max()
    erasure.left[dead] = 0.0
    erasure.right[:, dead] = 0.0
    return erasure


def _edit(covariance: Tensor, cross: Tensor, mean: Tensor, rank: int | None) -> Erasure:
    whiten, unwhiten = _whitening(covariance)
    basis, strength, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
    basis = basis[:, strength > 1e-10 * strength[0].clamp_min(1e-300)][:, :rank]
    return Erasure((unwhiten @ basis).contiguous(), (basis.T @ whiten).contiguous(), mean)


def _whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse square root and the square root, on the directions that vary."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > _RELATIVE_TOLERANCE * values[-1].clamp_min(1e-300)
    values, vectors = values[kept], vectors[:, kept]
    return (vectors / values.sqrt()) @ vectors.T, (vectors * values.sqrt()) @ vectors.T


def _rank_above_noise(x: Tensor, cross: Tensor, z: Tensor, rows: float) -> int:
    """Count the canonical correlations above the edge of those of as many independent rows."""
    of_x, of_z = (_whitening(covariance)[0] for covariance in (x, z))
    found = torch.linalg.svdvals(of_x @ cross @ of_z)
    p, q = (
        min(1.0, float(torch.linalg.matrix_rank(w, hermitian=True)) / rows) for w in (of_x, of_z)
    )
    edge = math.sqrt(p * (1 - q)) + math.sqrt(q * (1 - p))
    return int((found > min(edge, 1.0)).sum()) if p + q < 1 else 0
