"""Waterbirds as it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from surgeon.benchmarks.layouts.base import (
    SPLITS,
    LabelledImage,
    PublishedSet,
    check_counts,
    is_inside,
)
from surgeon.table import Table, read_table

# Split to the counts of (target, bias) groups: first target first.
_WATERBIRDS = {
    "train": (3_498, 184, 56, 1_057),
    "val": (467, 466, 133, 133),
    "test": (2_255, 2_255, 642, 642),
}
_BIRDS, _PLACES = ("landbird", "waterbird"), ("land", "water")


def read_waterbirds(root: str | Path, target: Literal["bird", "place"] = "bird") -> PublishedSet:
    """Read the published Waterbirds: of kind of bird and background one is target, one bias.

    Args:
        root: Folder with `metadata.csv` (columns `img_id`, `img_filename`, `y`, `split`, `place`,
            `place_filename`) and the images it names.
        target: Which.

    Returns:
        One row per image, in the order of the file.

    Raises:
        LabelError: The file is not there or cannot be used; every fault is listed.

    Source:
        Sagawa and others, Distributionally robust neural networks, ICLR 2020.
    """
    root = Path(root)
    table = read_table(root / "metadata.csv", ("img_filename", "y", "split", "place"))
    cells = (table.cells[name] for name in ("img_filename", "y", "place", "split"))
    rows, seen = [], set()
    for number, path, bird, place, split in zip(table.rows, *cells, strict=True):
        _note_faults(table, number, path, bird, place, split)
        if path and path in seen:
            table.fault(f"image '{path}' stands in an earlier row too", number)
        seen.add(path)
        if not table.faults:
            names = _BIRDS[int(bird)], _PLACES[int(place)], SPLITS[split]
            rows.append(LabelledImage(path, *names))
    table.raise_faults()
    notes = check_counts(root, rows, _WATERBIRDS, _BIRDS, _PLACES)
    if target == "place":
        rows = [row._replace(target=row.bias, bias=row.target) for row in rows]
    return PublishedSet(tuple(rows), notes)


def _note_faults(table: Table, number: int, path: str, bird: str, place: str, split: str) -> None:
    if path and not is_inside(path):
        table.fault(f"path '{path}' leaves the folder of the data set", number)
    for column, cell, known in (
        ("y", bird, ("0", "1")),
        ("place", place, ("0", "1")),
        ("split", split, tuple(SPLITS)),
    ):
        if cell and cell not in known:
            table.fault(f"{column} '{cell}', expected {' or '.join(known)}", number)
