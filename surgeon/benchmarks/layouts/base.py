"""Rows of a published data set, the checks that all readers share, and the label file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from surgeon.errors import LabelError
from surgeon.whole import replacing

SPLITS = {"0": "train", "1": "val", "2": "test"}
"""Published as numbers; `surgeon` reads these names as fit, select and report."""
NO_COUNTS = "published group counts not checked"


class LabelledImage(NamedTuple):
    """One row of a label file."""

    path: str
    """From the data set's folder, with slashes."""
    target: str
    bias: str
    split: str
    """`train`, `val` or `test`."""


@dataclass(frozen=True)
class PublishedSet:
    """Rows of a published data set, in its order."""

    rows: tuple[LabelledImage, ...]
    notes: tuple[str, ...]
    """What could not be checked."""


def write_label_csv(rows: Iterable[LabelledImage], csv_path: str | Path) -> None:
    """Write rows as the file that `surgeon prune --bias-labels` reads.

    Paths start from the data set's folder: write the file there, or pass `--images`.

    Args:
        rows: All of a set, or those of the splits wanted.
        csv_path: The file; one that is there is replaced.

    Raises:
        ArtefactError: It cannot be written.
    """
    with replacing(Path(csv_path)) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LabelledImage._fields)
        writer.writerows(rows)


def check_counts(
    root: Path,
    rows: Sequence[LabelledImage],
    published: dict[str, tuple[int, ...]],
    targets: tuple[str, str],
    biases: tuple[str, str],
) -> tuple[str, ...]:
    """Compare with the published counts if all rows are there, else note that it was not done."""
    whole = sum(map(sum, published.values()))
    if len(rows) != whole:
        return (f"{root}: found {len(rows)} rows, the full set has {whole}; {NO_COUNTS}",)
    found = Counter((row.split, row.target, row.bias) for row in rows)
    wrong = [
        f"{split}, {target}, {bias}: found {found[split, target, bias]}, expected {expected}"
        for split, counts in published.items()
        for (target, bias), expected in zip(
            ((target, bias) for target in targets for bias in biases), counts, strict=True
        )
        if found[split, target, bias] != expected
    ]
    if wrong:
        raise LabelError(
            f"{root}: {len(wrong)} groups differ from the published counts; get the set again",
            wrong,
        )
    return ()


def is_inside(path: str) -> bool:
    """Tell whether a path of a data set stays in its folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path


def need_folder(folder: Path, what: str) -> None:
    """Refuse a folder that is not there."""
    if not folder.is_dir():
        raise LabelError(f"{folder}: no such folder, expected {what}; give the set's own folder")


def raise_faults(path: Path, faults: Sequence[str]) -> None:
    """Raise if a file has faults, with all of them."""
    if faults:
        raise LabelError(
            f"{path}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}; correct the file",
            faults,
        )
