"""Closed-form measures of what features hold: dependence on a label, spread within classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

_TINY = 1e-12
_PART = 1000


def hsic(features: Tensor, labels: Tensor) -> Tensor:
    """Return the normalised Hilbert-Schmidt independence criterion of features and a label.

    The cosine of two centred kernel matrices: exp(-d^2 / median d^2) of the features, which sees
    dependence of any shape, and 1 for equal labels. No head has to be trained, so none can be
    fooled. 0 where either does not vary.

    Args:
        features: `[n, D]` float; the gradient reaches them, not the median.
        labels: `[n]` int64.

    Returns:
        Scalar, 0 (independent, in large samples) to 1; unchanged when features are shifted,
        rotated or scaled, or labels renamed. Of many rows the mean over parts of about 1,000:
        the kernels are quadratic in them.

    Source:
        Gretton and others, Measuring statistical dependence with Hilbert-Schmidt norms, 2005,
        normalised as in Cortes and others, Centered kernel alignment, JMLR 2012.
    """
    parts = max(1, round(len(features) / _PART))
    found = [_alignment(features[i::parts], labels[i::parts]) for i in range(parts)]
    return torch.stack(found).mean()


def _alignment(features: Tensor, labels: Tensor) -> Tensor:
    x = features - features.mean(0)
    norms = x.square().sum(1)
    # Not cdist, whose root has no gradient at 0.
    distances = (norms[:, None] + norms - 2 * x @ x.T).clamp_min(0)
    kernel = _centred((-distances / distances.detach().median().clamp_min(_TINY)).exp())
    same = _centred((labels[:, None] == labels).to(x))
    norm = (kernel.square().sum() + _TINY).sqrt() * (same.square().sum() + _TINY).sqrt()
    return (kernel * same).sum() / norm


def _centred(kernel: Tensor) -> Tensor:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def scatter(features: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return the share of the features' variance that lies within classes.

    A class that is a point holds nothing but the class.

    Args:
        features: `[n, D]` float; the gradient reaches them.
        target: `[n]` int64, values 0..C-1.
        num_classes: C.

    Returns:
        Scalar, 0 to 1; unchanged when features are shifted, rotated or scaled.

    Source:
        Fisher's criterion (1936): the traces of the scatter within classes and of all of it.
    """
    within = within_classes(features, target, num_classes).square().sum()
    whole = (features - features.mean(0)).square().sum()
    return within / whole.clamp_min(_TINY)


def within_classes(features: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return `[n, D]`, the features less the mean of their class.

    Args:
        features: `[n, D]` float; the gradient reaches them.
        target: `[n]` int64, values 0..C-1.
        num_classes: C.
    """
    member = one_hot(target, num_classes).to(features)
    # A product with a one-hot matrix, not index_add, which is not deterministic on CUDA.
    means = (member.T @ features) / member.sum(0).clamp_min(1)[:, None]
    return features - member @ means
