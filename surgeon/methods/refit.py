"""A new head for frozen features: logistic regression with groups counting equally."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from surgeon.data import Data, extract
from surgeon.edit import Edit, Erasure
from surgeon.errors import IncompatibleError
from surgeon.methods.base import device_changes, select_accuracy
from surgeon.subject import Subject

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)


def refit_head(
    subject: Subject,
    data: Data,
    strengths: Sequence[float] = STRENGTHS,
    *,
    overrides: Mapping[str, Tensor] | None = None,
    erasure: Erasure | None = None,
) -> dict[str, Tensor]:
    """Fit one L2 logistic regression per strength on fit rows and keep the best on select rows.

    Args:
        subject: The frozen network.
        data: Labelled rows.
        strengths: Values of C, the inverse penalty on standardised features.
        overrides: Tensors of an edited encoder.
        erasure: What its features go through first.

    Returns:
        The head's weight `[C, D]` and additive term `[C]` by parameter name, float32.

    Raises:
        IncompatibleError: The head has no additive term.
    """
    if subject.head.bias is None:
        raise IncompatibleError(
            f"{subject.head_name}: has no additive term, which last-layer retraining needs"
        )
    groups = data.fit.groups
    x, select = (
        extract(subject, rows, overrides=overrides).features.double()
        for rows in (data.fit, data.select)
    )
    if erasure:
        x, select = erasure(x), erasure(select)
    weights = groups.weights().numpy()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-8 * scale.max(), scale, 1.0)
    best, chosen = -1.0, None
    model = LogisticRegression(max_iter=500, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((x - mean) / scale, groups.target.numpy(), weights * len(x) / weights.sum())
        head = _head(model, subject.num_classes, mean, scale)
        accuracy = select_accuracy(select @ head[0].T + head[1], data.select.groups)
        if accuracy > best:
            best, chosen = accuracy, head
    assert chosen is not None
    names = (f"{subject.head_name}.weight", f"{subject.head_name}.bias")
    return {n: value.float() for n, value in zip(names, chosen, strict=True)}


def with_new_head(subject: Subject, data: Data, edit: Edit) -> Edit:
    """Replace the head of an edit by one refitted on what its encoder and erasure hand over.

    The new head reads nothing of what the erasure removes, so it is the same without it.
    """
    overrides = device_changes(subject, edit.without("updates", "erasure"))
    updates = refit_head(subject, data, overrides=overrides, erasure=edit.erasure)
    if edit.erasure:
        updates = dict(zip(updates, edit.erasure.fold(*updates.values()), strict=True))
    return replace(edit, updates=updates)


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
