"""A new head for frozen features: logistic regression with groups counting equally."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from surgeon.data import Data, extract
from surgeon.edit import Edit, Erasure
from surgeon.groups import Groups
from surgeon.methods.base import device_changes, feature_scaling, select_accuracy
from surgeon.subject import Subject

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
# scikit-learn warns of `penalty` from 1.8 on, and knows no `l1_ratio` without it before.
_OLD = tuple(map(int, version("scikit-learn").split(".")[:2])) < (1, 8)
_L1: dict[str, Any] = {"penalty": "l1"} if _OLD else {"l1_ratio": 1.0}

Matrix = tuple[Tensor, Tensor]
"""Weight `[C, D]` and additive term `[C]`."""


def refit_head(
    subject: Subject,
    data: Data,
    strengths: Sequence[float] = STRENGTHS,
    *,
    overrides: Mapping[str, Tensor] | None = None,
    erasure: Erasure | None = None,
) -> Matrix:
    """Fit one L2 logistic regression per strength on fit rows and keep the best on select rows.

    Args:
        subject: The frozen network.
        data: Labelled rows.
        strengths: Values of C, the inverse penalty on standardised features.
        overrides: Tensors of an edited encoder.
        erasure: What its features go through first.

    Returns:
        The head's weight `[C, D]` and additive term `[C]`, float32.

    Raises:
        IncompatibleError: A new head does not fit in.
    """
    x, select = _features(subject, data, overrides, erasure)
    groups = data.fit.groups
    weights = groups.weights().numpy()
    scaling = feature_scaling(x)
    model = LogisticRegression(max_iter=500, warm_start=True)

    def fitted(strength: float) -> Matrix:
        model.set_params(C=strength)
        weighted = weights * len(x) / weights.sum()
        return _fit(model, x, groups.target, scaling, subject.num_classes, weighted)

    return _rounded(_best(map(fitted, strengths), select, data))


def refit_head_on_subsets(
    subject: Subject, data: Data, strengths: Sequence[float], *, refits: int, seed: int
) -> Matrix:
    """Average L1 logistic regressions on subsets of the fit rows in which groups are equally large.

    The strength is the best on select rows of one fit each on the first subset.

    Args:
        subject: The frozen network.
        data: Labelled rows.
        strengths: Values of C, the inverse penalty on standardised features.
        refits: Subsets that are drawn.
        seed: Of the subsets and of the solver.

    Returns:
        The head's weight `[C, D]` and additive term `[C]`, float32.

    Raises:
        IncompatibleError: A new head does not fit in.
    """
    x, select = _features(subject, data, None, None)
    groups, scaling = data.fit.groups, feature_scaling(x)
    generator = torch.Generator().manual_seed(seed)
    subsets = [_balanced_subset(groups, generator) for _ in range(refits)]

    def fitted(strength: float, rows: Tensor) -> Matrix:
        # The published solver knows two classes only.
        solver = "liblinear" if subject.num_classes == 2 else "saga"
        model = LogisticRegression(
            C=strength, solver=solver, max_iter=2000, random_state=seed, **_L1
        )
        target = groups.target[rows]
        return _fit(model, x[rows], target, scaling, subject.num_classes, None)

    tried = [fitted(strength, subsets[0]) for strength in strengths]
    best = _best(tried, select, data)
    strength = strengths[next(i for i, head in enumerate(tried) if head is best)]
    heads = [best, *(fitted(strength, rows) for rows in subsets[1:])]
    weights, terms = (torch.stack(part).mean(0) for part in zip(*heads, strict=True))
    return _rounded((weights, terms))


def _balanced_subset(groups: Groups, generator: torch.Generator) -> Tensor:
    """Draw as many rows of every group as the smallest that is not empty has."""
    members = [(groups.index == group).nonzero().flatten() for group in groups.index.unique()]
    size = min(map(len, members))
    drawn = [rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in members]
    return torch.cat(drawn)


def _features(
    subject: Subject, data: Data, overrides: Mapping[str, Tensor] | None, erasure: Erasure | None
) -> tuple[Tensor, Tensor]:
    """Return what the head is given for fit and select rows, float64."""
    subject.head.check(subject.head_tensors, "a new head")
    x, select = (
        extract(subject, rows, overrides=overrides).features.double()
        for rows in (data.fit, data.select)
    )
    return (erasure(x), erasure(select)) if erasure else (x, select)


def _fit(
    model: LogisticRegression,
    x: Tensor,
    target: Tensor,
    scaling: tuple[Tensor, Tensor],
    num_classes: int,
    weights: Any,
) -> Matrix:
    mean, scale = scaling
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((x - mean) / scale, target.numpy(), weights)
    return _head(model, num_classes, mean, scale)


def _best(heads: Iterable[Matrix], select: Tensor, data: Data) -> Matrix:
    """Return the head of highest mean accuracy over groups of select rows, the first of equals."""
    groups = data.select.groups
    return max(heads, key=lambda head: select_accuracy(select @ head[0].T + head[1], groups))


def _rounded(head: Matrix) -> Matrix:
    return head[0].float(), head[1].float()


def with_new_head(subject: Subject, data: Data, edit: Edit) -> Edit:
    """Replace the head of an edit by one refitted on what its encoder and erasure hand over.

    The new head reads nothing of what the erasure removes, so it is the same without it.
    """
    overrides = device_changes(subject, edit.without("updates", "erasure"))
    head = refit_head(subject, data, overrides=overrides, erasure=edit.erasure)
    if edit.erasure:
        head = edit.erasure.fold(*head)
    return replace(edit, updates=subject.head.replaced(*head, subject.head_tensors))


def _head(
    model: LogisticRegression, num_classes: int, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold the standardisation in; a class without rows gets no chance."""
    weight = torch.zeros(num_classes, len(mean), dtype=torch.float64)
    # Far below any logit that a standardised linear model gives, and finite for softmax.
    bias_term = torch.full((num_classes,), -1e4, dtype=torch.float64)
    coef, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if len(coef) == 1:  # two classes share one separating plane
        coef, intercept = np.vstack([-coef, coef]) / 2, np.hstack([-intercept, intercept]) / 2
    classes = torch.from_numpy(np.asarray(model.classes_)).long()
    weight[classes] = torch.from_numpy(coef) / scale
    bias_term[classes] = torch.from_numpy(intercept) - weight[classes] @ mean
    return weight, bias_term
