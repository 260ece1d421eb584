"""From a label file without biases to one with a guessed bias, and how far the guess is true."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import normalized_mutual_info_score

from surgeon.data import Rows
from surgeon.discovery.base import Discovery, Progress, PseudoLabels
from surgeon.errors import ArtefactError
from surgeon.groups import Groups, Labels
from surgeon.subject import Subject
from surgeon.whole import replacing


@dataclass(frozen=True, eq=False)
class Discovered:
    """Pseudo labels of a label file's rows."""

    labels: Labels
    found: PseudoLabels
    agreement: Mapping[str, Mapping[str, float | int | None]]
    """True bias column to how the guess agrees with it; see `agreement_with`."""

    def to_json(self) -> dict[str, Any]:
        """Return counts per value, the history and the agreement."""
        counts = torch.bincount(self.found.values, minlength=len(self.found.names)).tolist()
        return {
            "rows": len(self.found.values),
            "values": dict(zip(self.found.names, counts, strict=True)),
            "history": [dict(record) for record in self.found.history],
            "agreement": {column: dict(row) for column, row in self.agreement.items()},
        }


def discover(
    subject: Subject,
    rows: Rows,
    labels: Labels,
    discovery: Discovery,
    *,
    progress: Progress | None = None,
) -> Discovered:
    """Guess the bias of every row of a label file.

    Rows that a `split` column reports on are labelled, but nothing is fitted on them.

    Args:
        subject: The frozen network.
        rows: All rows of the file.
        labels: The file; bias columns that it was read with are compared with and not used.
        discovery: How to guess.
        progress: Takes one record per moment.
    """
    train = rows
    if labels.split is not None:
        free = torch.tensor([part != "report" for part in labels.split]).nonzero().flatten()
        train = Rows(rows.images, rows.groups.take(free), rows.index[free])
    found = discovery.find(subject, rows, train, progress=progress)
    groups = labels.groups
    agreement = {c: agreement_with(found, groups, k) for k, c in enumerate(groups.columns)}
    return Discovered(labels, found, agreement)


def agreement_with(
    found: PseudoLabels, groups: Groups, column: int
) -> dict[str, float | int | None]:
    """Compare a guess with a true bias.

    Args:
        found: The guess.
        groups: The same rows.
        column: Position of the true bias.

    Returns:
        `normalised_mutual_information`, 0 to 1; and where the guess names classes, `conflicting`,
        the rows whose true bias goes with another target than theirs, and the `recall` and
        `precision` of the guess for them, None where there is nothing to divide by.
    """
    truth = groups.biases[:, column]
    shared = normalized_mutual_info_score(truth.numpy(), found.values.numpy())
    row: dict[str, float | int | None] = {"normalised_mutual_information": float(shared)}
    if found.names == groups.target_names:
        guessed = found.values != groups.target
        true = groups.usual_targets(column)[truth] != groups.target
        both = int((guessed & true).sum())
        row |= {
            "conflicting": int(true.sum()),
            "recall": both / int(true.sum()) if bool(true.any()) else None,
            "precision": both / int(guessed.sum()) if bool(guessed.any()) else None,
        }
    return row


def check_labels_out(out: Path, labels: Path, *, force: bool) -> None:
    """Refuse, before any work, an output file that is there already, or is the input.

    Args:
        out: The file to be made.
        labels: The file that is read; never replaced.
        force: Replace an earlier file.

    Raises:
        ArtefactError: It must not be written.
    """
    if out.resolve() == labels.resolve():
        raise ArtefactError(f"{out}: is the label file itself; pass another --out")
    if out.exists() and not (force and out.is_file()):
        raise ArtefactError(f"{out}: exists already; pass --force to replace it, or another --out")


def write_labels(out: Path, discovered: Discovered, root: Path, *, force: bool) -> None:
    """Write a label file that every operation accepts: path, target, bias, confidence, split.

    True biases that were read come along as `true_NAME`.

    Args:
        out: The file.
        discovered: What to write.
        root: Folder that the image paths start from.
        force: Replace an earlier file.

    Raises:
        ArtefactError: It is there already, is the file that was read, or cannot be written.
    """
    labels, found, groups = discovered.labels, discovered.found, discovered.labels.groups
    check_labels_out(out, labels.csv, force=force)
    columns: dict[str, list[str]] = {
        "path": [path.relative_to(root).as_posix() for path in labels.paths],
        "target": [groups.target_names[target] for target in groups.target.tolist()],
        "bias": [found.names[value] for value in found.values.tolist()],
        "confidence": [f"{sure:.4f}" for sure in found.confidence.tolist()],
    }
    for k, column in enumerate(groups.columns):
        names = groups.value_names[k]
        columns[f"true_{column}"] = [names[value] for value in groups.biases[:, k].tolist()]
    if labels.split is not None:
        columns["split"] = list(labels.split)
    with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
