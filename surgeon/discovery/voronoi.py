"""Voronoi cells: a misclassified row that lies deep in another class's cell shows the bias."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from surgeon.data import Outputs, Rows
from surgeon.discovery.base import Discovery, Progress, PseudoLabels
from surgeon.discovery.moments import Moment, moments_of_folder, one_moment, short_run
from surgeon.errors import IncompatibleError
from surgeon.subject import Subject

# Moments past the best after which a training run is broken off.
_PATIENCE = 3


@dataclass(frozen=True, kw_only=True)
class Voronoi(Discovery):
    """Take the class a network mistakes a row for as its bias, at the moment it errs most deeply.

    A row that is classified well is aligned: its bias is its own class. The moment is the one of
    the largest mean distance of misclassified rows beyond the border to the predicted class.

    Source:
        Nahon and others, Mining bias-target alignment from Voronoi cells, ICCV 2023, eq. 1 to 4.
        There the distance is that to the border whichever side a row lies on, measured on batches
        in passing, and the network is trained to the end. Ours is signed, measured on all rows of a
        network at rest, and a run ends once the distance has fallen three times.
    """

    name: ClassVar[str] = "voronoi"

    over: str | Path = "run"
    """`run`: a short training run made for it; `checkpoint`: the network as it is; else a folder of
    checkpoints saved while it was trained."""
    seed: int = 0

    def find(
        self, subject: Subject, rows: Rows, train: Rows, *, progress: Progress | None = None
    ) -> PseudoLabels:
        """Go through the moments, and label the rows by the best.

        Raises:
            ArtefactError: The folder holds no checkpoint.
            CheckpointError: One of its files cannot be used.
            IncompatibleError: No moment has misclassified rows between two known classes.
        """
        target, history = rows.groups.target, []
        best, chosen, waited = -math.inf, None, 0
        for moment in self._moments(subject, rows, train):
            wrong = moment.outputs.logits.argmax(1) != target
            distance = float(border_distances(moment.outputs, target).nanmean())
            record = {
                "moment": moment.name,
                "accuracy": 1 - float(wrong.double().mean()),
                "misclassified": int(wrong.sum()),
                "distance": None if math.isnan(distance) else distance,
            }
            history.append(record)
            if progress:
                progress(record)
            if distance > best:
                best, chosen, waited = distance, moment, 0
            elif chosen:
                waited += 1
            if waited == _PATIENCE and self.over == "run":
                break
        if chosen is None:
            raise IncompatibleError(
                f"--over {self.over}: found no row that is taken for another class in "
                f"{len(history)} moments, expected some; give more rows, or another --over"
            )
        confidence, values = chosen.outputs.logits.softmax(1).max(1)
        told = tuple({**record, "chosen": record["moment"] == chosen.name} for record in history)
        return PseudoLabels(values, rows.groups.target_names, confidence, told)

    def _moments(self, subject: Subject, rows: Rows, train: Rows) -> Iterator[Moment]:
        if self.over == "run":
            return short_run(subject, rows, train, seed=self.seed)
        if self.over == "checkpoint":
            return one_moment(subject, rows)
        return moments_of_folder(subject, rows, Path(self.over))


def border_distances(outputs: Outputs, target: Tensor) -> Tensor:
    """Measure how far each misclassified row lies beyond the border to the class it is taken for.

    Classes are represented by the mean feature of their well-classified rows; the border between
    two lies halfway.

    Args:
        outputs: Of N rows.
        target: `[N]` int64.

    Returns:
        `[N]` float64, relative to the mean length of the two means, negative on the row's own
        side; NaN for well-classified rows, and where a class has none.
    """
    x = outputs.features.double()
    predicted = outputs.logits.argmax(1)
    means = torch.full((outputs.logits.shape[1], x.shape[1]), torch.nan, dtype=x.dtype)
    for value in target[predicted == target].unique().tolist():
        means[value] = x[(target == value) & (predicted == value)].mean(0)
    own, other = means[target], means[predicted]
    normal = other - own
    height = ((x - (own + other) / 2) * normal).sum(1) / normal.norm(dim=1)
    relative = 2 * height / (own.norm(dim=1) + other.norm(dim=1))
    return torch.where(predicted == target, torch.nan, relative)
