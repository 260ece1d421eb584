"""What every operation shares: a configuration in, an edit out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgeon.data import Data, Rows, extract
from surgeon.edit import Edit
from surgeon.erasure import fit_erasure
from surgeon.groups import Groups
from surgeon.metrics import balanced_accuracy, group_accuracies
from surgeon.recalibrate import recalibrate
from surgeon.subject import Subject

Progress = Callable[[Mapping[str, Any]], None]
"""Takes one record per epoch: name to number."""

# Images of a batch whose statistics are measured.
_BATCH = 256


class Method(ABC):
    """Learn an edit of a frozen subject from labelled rows.

    A method is a frozen dataclass of its settings. It reads fit and select rows, never report
    rows, and changes nothing.
    """

    name: ClassVar[str]
    """Registry key."""

    @abstractmethod
    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Learn the edit.

        Args:
            subject: The frozen network.
            data: Labelled rows; only `data.fit` and `data.select` are read.
            progress: Called once per epoch.
        """


def new_edit(subject: Subject, method: str, **parts: Any) -> Edit:
    """Bind the parts of an edit to its base."""
    return Edit(subject.sha256, str(subject.architecture), method, subject.head, **parts)


def with_recalibration(
    subject: Subject, data: Data, edit: Edit, *, seed: int, balance: str = "groups"
) -> Edit:
    """Add BatchNorm statistics measured on the fit rows."""
    overrides = device_changes(subject, edit.without("buffers", "erasure"))
    generator = torch.Generator().manual_seed(seed)
    batches = (x for _, x in data.fit.epoch(_BATCH, generator, balance))
    measured = recalibrate(subject, batches, overrides)
    return replace(edit, buffers={name: value.cpu() for name, value in measured.items()})


def with_erasure(subject: Subject, data: Data, edit: Edit, *, above_noise: bool = True) -> Edit:
    """Add the closed-form erasure fitted on the edited network's features of the fit rows.

    Args:
        subject: The frozen network.
        data: Labelled rows.
        edit: What was done so far; an erasure it has is replaced.
        above_noise: Erase only directions that stand out of noise; see `fit_erasure`.
    """
    overrides = device_changes(subject, edit.without("erasure"))
    outputs = extract(subject, data.fit, overrides=overrides)
    groups = data.fit.groups
    return replace(edit, erasure=fit_erasure(outputs.features, groups, above_noise=above_noise))


def device_changes(subject: Subject, edit: Edit) -> dict[str, Tensor]:
    """Return the tensors an edit changes, on the subject's device."""
    return {n: t.to(subject.device) for n, t in edit.changes(subject.tensors()).items()}


def select_accuracy(logits: Tensor, groups: Groups) -> float:
    """Return the balanced accuracy of `[N, C]` logits over non-empty groups, a fraction."""
    correct = logits.argmax(1).cpu() == groups.target
    return float(balanced_accuracy(group_accuracies(correct, groups.index, groups.num_groups)))


def select_loss(logits: Tensor, groups: Groups) -> float:
    """Return the cross-entropy of `[N, C]` logits, nats, groups counting equally.

    The logits are divided by the temperature that suits them best, so that a sure network is not
    punished for being sure: on few rows this tells candidates apart that accuracy does not.
    """
    weights = groups.weights()
    logits = logits.double().cpu()
    losses = [
        (weights * cross_entropy(logits / temperature, groups.target, reduction="none")).sum()
        for temperature in torch.logspace(-1, 2, 31, dtype=torch.float64)
    ]
    return float(torch.stack(losses).min() / weights.sum())


def gather_biases(rows: Rows, picked: Tensor, device: torch.device) -> list[Tensor]:
    """Return the labels of each fitted bias column for some rows, `[n]` each."""
    return [rows.groups.biases[picked, k].to(device) for k in rows.groups.fitted]


def feature_scaling(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and deviations `[D]` of features `[N, D]`; constant ones deviate by 1."""
    mean, scale = features.mean(0), features.std(0, correction=0)
    return mean, torch.where(scale > 1e-8 * scale.max(), scale, 1.0)


def random_batches(
    features: Tensor, rows: Rows, num_batches: int, size: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Draw batches of known features, with torch's own generator.

    Args:
        features: `[N, D]` of the N rows; their device is used.
        rows: For the biases.
        num_batches: How many.
        size: Rows of each, drawn with replacement.

    Yields:
        Features `[size, D]`, and for each fitted bias its labels `[size]`.
    """
    for _ in range(num_batches):
        picked = torch.randint(len(features), (size,))
        yield features[picked.to(features.device)], gather_biases(rows, picked, features.device)
