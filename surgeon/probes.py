"""Leakage: how well a fresh probe reads the bias from features, cross-fitted."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from surgeon.findings import ProbeScore
from surgeon.metrics import balanced_accuracy, bootstrap_accuracies, group_accuracies, interval
from surgeon.stacked_mlp import Fold, mlp_predictions

__all__ = ["ProbeScore", "Prober"]

Kind = Literal["linear", "mlp"]

_FOLDS = 5
_MIN_ROWS = 2 * _FOLDS
_C_PATH = (0.01, 0.1, 1.0, 10.0)
_LINEAR_HOLDOUT, _MLP_HOLDOUT = 5, 10
_PLANT_STRENGTH, _PLANT_READ = 4.0, 0.95


@dataclass(frozen=True, eq=False)
class _Task:
    """One set of features with what is to be read from it."""

    features: Tensor
    bias: Tensor
    cell: Tensor
    num_values: int
    num_cells: int
    seed: int

    def generator(self) -> torch.Generator:
        """Return a fresh generator: every part of a probe starts from the same seed."""
        return torch.Generator().manual_seed(self.seed)

    def folds(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training and held-out rows of every outer fold."""
        part = _stratified_parts(self.cell, _FOLDS, self.generator())
        for fold in range(_FOLDS):
            yield (part != fold).nonzero().flatten(), (part == fold).nonzero().flatten()

    def holdout(self, rows: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """Split training rows once more, into those to learn from and 1 / parts to choose by."""
        inner = _stratified_parts(self.cell[rows], parts, self.generator()) == 0
        return rows[~inner], rows[inner]

    def weights(self, rows: Tensor) -> Tensor:
        """Return weights, 1 on average, under which the cells present count equally."""
        counts = torch.bincount(self.cell[rows], minlength=self.num_cells)
        weights = 1 / counts[self.cell[rows]].double()
        return weights / weights.mean()

    def moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted mean and deviation of the features; 1 where they are constant."""
        weights, x = self.weights(rows)[:, None], self.features[rows].double()
        mean = (weights * x).mean(dim=0)
        deviation = (weights * (x - mean).square()).mean(dim=0).sqrt()
        constant = deviation <= 1e-6 * x.abs().amax(dim=0)
        return mean.float(), deviation.masked_fill(constant, 1.0).float()

    def mlp_fold(self, train: Tensor, test: Tensor) -> Fold:
        """Return one outer fold as the networks take it."""
        learn, choose = self.holdout(train, _MLP_HOLDOUT)
        mean, deviation = self.moments(train)
        shares = self.weights(choose) / len(choose)
        return Fold(learn, choose, test, mean, deviation, self.weights(learn), shares)

    def score(self, predicted: Tensor, rows: Tensor) -> float:
        """Return the cell-balanced accuracy on some rows."""
        correct, cell = predicted == self.bias[rows], self.cell[rows]
        return float(balanced_accuracy(group_accuracies(correct, cell, self.num_cells)))


class Prober:
    """Fits and scores leakage probes, and remembers what it has read.

    Probes are fitted and scored on the rows given, by 5-fold cross-fitting stratified by
    (target, bias) cell, with cells weighted equally. The same seed gives the same folds for
    every set of features, so that two operations are measured alike.

    Args:
        seed: Of folds, holdouts, initial weights, batches, planted signal and bootstrap.
        draws: Bootstrap draws of the interval.
    """

    def __init__(self, *, seed: int, draws: int = 2000) -> None:
        self._seed = seed
        self._draws = draws
        self._scores: dict[str, ProbeScore] = {}
        self._trusted: dict[str, bool] = {}

    def score(
        self,
        features: Tensor,
        target: Tensor,
        bias: Tensor,
        num_classes: int,
        num_values: int,
        kind: Kind,
    ) -> ProbeScore:
        """Read the bias from the features, beyond what the target tells.

        The score is the mean over non-empty (target, bias) cells. When every cell has rows, a
        prediction that depends on the target alone scores exactly 1 / B.

        Args:
            features: `[N, D]` float.
            target: `[N]` int64, values 0..C-1.
            bias: `[N]` int64, values 0..B-1.
            num_classes: C.
            num_values: B.
            kind: "linear" (multinomial logistic regression) or "mlp" (one or two hidden layers).

        Returns:
            The score; computed once for equal arguments. Its interval is a bootstrap over rows,
            stratified by cell, with the fitted probes held fixed.
        """
        target, bias = target.cpu(), bias.cpu()
        task = _Task(
            features=features.detach().to("cpu", torch.float32).contiguous(),
            bias=bias,
            cell=target * num_values + bias,
            num_values=num_values,
            num_cells=num_classes * num_values,
            seed=self._seed,
        )
        shape = (kind, *features.shape, num_classes, num_values)
        labels_key = _digest(shape, task.cell)
        key = _digest(labels_key, task.features)
        if key not in self._scores:
            self._scores[key] = self._measure(task, kind, labels_key)
        return self._scores[key]

    def _measure(self, task: _Task, kind: Kind, labels_key: str) -> ProbeScore:
        n, chance = len(task.bias), 1 / task.num_values
        readable = n >= _MIN_ROWS and len(task.bias.unique()) > 1 and task.features.numel() > 0
        if not (readable and bool(task.features.isfinite().all())):
            return ProbeScore(math.nan, math.nan, math.nan, chance, n, trusted=False)
        if labels_key not in self._trusted:
            planted = _planted(task)
            read = planted.score(_cross_fit(planted, kind), torch.arange(n))
            self._trusted[labels_key] = read >= _PLANT_READ
        correct = _cross_fit(task, kind) == task.bias
        acc = balanced_accuracy(group_accuracies(correct, task.cell, task.num_cells))
        draws = bootstrap_accuracies(
            correct[None], task.cell, task.num_cells, draws=self._draws, seed=self._seed
        )
        low, high = interval(balanced_accuracy(draws[:, 0]))
        return ProbeScore(float(acc), float(low), float(high), chance, n, self._trusted[labels_key])


def _digest(head: object, tensor: Tensor) -> str:
    return hashlib.sha256(repr(head).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()


def _stratified_parts(cell: Tensor, parts: int, generator: torch.Generator) -> Tensor:
    """Deal the rows out to parts, cell after cell, each cell in random order.

    The deal runs on from one cell to the next, so that small cells spread and parts stay even.
    """
    shuffled = torch.randperm(len(cell), generator=generator)
    order = shuffled[cell[shuffled].argsort(stable=True)]
    part = torch.empty_like(order)
    part[order] = torch.arange(len(cell)) % parts
    return part


def _planted(task: _Task) -> _Task:
    """Return the task with a signal that a working probe must read.

    Whole rows are shuffled first: the features keep their own geometry and lose what they tell
    of the bias, so that only the plant can be read. Neighbouring bias values are then set
    sqrt(2) x 4 standard deviations apart, on orthogonal directions where the dimension has
    room for them, else around a circle, or along a line when there is one feature only.
    """
    generator = task.generator()
    n, dim = task.features.shape
    mean, deviation = task.moments(torch.arange(n))
    noise = ((task.features - mean) / deviation)[torch.randperm(n, generator=generator)]
    values = task.num_values
    raw = torch.randn(dim, max(values, 2), generator=generator, dtype=torch.float64)
    frame = torch.linalg.qr(raw)[0].T
    if dim >= values:
        places = _PLANT_STRENGTH * frame[:values]
    elif dim == 1:
        places = _PLANT_STRENGTH * math.sqrt(2) * torch.arange(values).double()[:, None]
    else:
        angle = torch.arange(values).double() * 2 * math.pi / values
        radius = _PLANT_STRENGTH / math.sqrt(2) / math.sin(math.pi / values)
        places = radius * torch.stack([angle.cos(), angle.sin()], dim=1) @ frame[:2]
    features = noise + places.float()[task.bias]
    return _Task(features, task.bias, task.cell, values, task.num_cells, task.seed)


def _cross_fit(task: _Task, kind: Kind) -> Tensor:
    """Return `[N]` int64 predictions of the bias, each by a probe that never saw its row."""
    predicted = torch.empty_like(task.bias)
    if kind == "linear":
        # The solver's vectors are short: threads only wait for one another, up to 16 times over.
        with threadpool_limits(1, "blas"):
            for train, test in task.folds():
                predicted[test] = _linear_prediction(task, train, test)
    else:
        folds = [task.mlp_fold(train, test) for train, test in task.folds()]
        args = task.features, task.bias, task.num_values, folds
        for fold, values in zip(folds, mlp_predictions(*args, seed=task.seed), strict=True):
            predicted[fold.test] = values
    return predicted


def _linear_prediction(task: _Task, train: Tensor, test: Tensor) -> Tensor:
    mean, deviation = task.moments(train)

    def inputs(rows: Tensor) -> np.ndarray:
        return ((task.features[rows] - mean) / deviation).double().numpy()

    def fit(model: LogisticRegression, rows: Tensor) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(inputs(rows), task.bias[rows].numpy(), task.weights(rows).numpy())

    def predict(model: LogisticRegression, rows: Tensor) -> Tensor:
        return torch.from_numpy(model.predict(inputs(rows)))

    learn, choose = task.holdout(train, _LINEAR_HOLDOUT)
    if len(task.bias[learn].unique()) < 2:
        return task.bias[train].mode().values.expand(len(test))
    best, best_c = -math.inf, _C_PATH[0]
    path = LogisticRegression(max_iter=300, warm_start=True)
    for c in _C_PATH:
        score = task.score(predict(fit(path.set_params(C=c), learn), choose), choose)
        if score > best:
            best, best_c = score, c
    return predict(fit(LogisticRegression(C=best_c, max_iter=300), train), test)
