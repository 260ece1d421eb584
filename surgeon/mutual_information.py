"""Mutual information between a label and a soft prediction of it, differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

# IRENE's clamp, which FFW and VCBA share.
_TINY = 1e-15


def mutual_information(
    probabilities: Tensor, labels: Tensor, num_values: int, *, weights: Tensor | None = None
) -> Tensor:
    """Return the mutual information of soft predictions and labels, over ln of the values.

    With the soft joint table P = onehot(labels)^T probabilities / N it is
    sum P ln(P / (P_label P_out)) / ln(B): 0 if and only if P is a product, 1 for a perfect
    prediction of a uniform label, unchanged when values are renamed, >= 0 up to rounding.

    Args:
        probabilities: `[N, V]` float, each row sums to 1; the gradient reaches it.
        labels: `[N]` int64, values 0..B-1.
        num_values: B; below 2 the result is 0.
        weights: `[N]` float, >= 0, a weight for every row; equal when None.

    Returns:
        Scalar of the dtype of `probabilities`, fraction of ln(B).

    Source:
        IRENE (Tartaglione et al., BMVC 2022), used by FFW and VCBA. Their code normalises by the
        number of task classes; here it is the number of values of the bias itself.
    """
    return conditional_mutual_information(
        probabilities, labels, torch.zeros_like(labels), num_values, 1, weights=weights
    )


def conditional_mutual_information(
    probabilities: Tensor,
    labels: Tensor,
    condition: Tensor,
    num_values: int,
    num_conditions: int,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mutual information of predictions and labels given a third label.

    It is the mean over the condition's values, weighted by their share of the rows, of the
    mutual information among the rows with that value. Conditioned on the target it holds only
    what a prediction tells of the bias beyond what the target tells.

    Args:
        probabilities: `[N, V]` float, each row sums to 1; the gradient reaches it.
        labels: `[N]` int64, values 0..B-1.
        condition: `[N]` int64, values 0..Y-1.
        num_values: B; below 2 the result is 0.
        num_conditions: Y.
        weights: `[N]` float, >= 0, a weight for every row; equal when None.

    Returns:
        Scalar of the dtype of `probabilities`, fraction of ln(B).
    """
    if num_values < 2:
        return probabilities.sum() * 0.0
    if weights is None:
        share = torch.full_like(probabilities[:, 0], 1 / len(labels))
    else:
        share = weights.to(probabilities) / weights.sum()
    # A product with a one-hot matrix, not index_add, which is not deterministic on CUDA.
    place = one_hot(condition * num_values + labels, num_conditions * num_values)
    table = place.to(probabilities).T @ (probabilities * share[:, None])
    return table_information(table.view(num_conditions, num_values, -1)).sum()


def table_information(table: Tensor) -> Tensor:
    """Return the mutual information of label and prediction in joint tables, over ln of the values.

    Args:
        table: `[..., B, V]` float, shares >= 0 that sum to 1 over all tables; B at least 2.

    Returns:
        `[...]`, fraction of ln(B) of each table, weighted by its own sum.
    """
    table = table.clamp_min(_TINY)
    inside = table.sum(dim=(-2, -1), keepdim=True)
    by_label, by_output = table.sum(dim=-1, keepdim=True), table.sum(dim=-2, keepdim=True)
    terms = table * (table.log() + inside.log() - by_label.log() - by_output.log())
    return terms.sum(dim=(-2, -1)) / math.log(table.shape[-2])


def finite_sample_floor(n: int, num_values: int) -> float:
    """Return what hard predictions independent of the label read on average in n rows.

    The first-order bias of the plug-in estimate, (B-1)^2 / (2 n ln B): a reading near it is
    no evidence of dependence.

    Args:
        n: Number of rows, >= 1.
        num_values: B, for the label and the prediction alike.

    Returns:
        Fraction of ln(B).

    Source:
        Miller (1955), "Note on the bias of information estimates".
    """
    return (num_values - 1) ** 2 / (2 * n * math.log(num_values)) if num_values > 1 else 0.0
