"""CelebA and Waterbirds as they are published: rows, checked counts, and a file of labels."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from surgeon.errors import ArtefactError, LabelError
from surgeon.table import Table, read_table

# Published as numbers; `surgeon` reads these names as fit, select and report.
_SPLITS = {"0": "train", "1": "val", "2": "test"}
_NO_COUNTS = "published group counts not checked"


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


# Split to the counts of (target, bias) groups: first target first.
_CELEBA = {
    "train": (71_629, 66_874, 22_880, 1_387),
    "val": (8_535, 8_276, 2_874, 182),
    "test": (9_767, 7_535, 2_480, 180),
}
_BLOND, _SEX = ("not blond", "blond"), ("female", "male")
_WATERBIRDS = {
    "train": (3_498, 184, 56, 1_057),
    "val": (467, 466, 133, 133),
    "test": (2_255, 2_255, 642, 642),
}
_BIRDS, _PLACES = ("landbird", "waterbird"), ("land", "water")


def read_celeba(root: str | Path) -> PublishedSet:
    """Read CelebA's own files: target blond hair, bias sex.

    Args:
        root: Folder with `img_align_celeba/`, `list_attr_celeba.txt`, `list_eval_partition.txt`.

    Returns:
        One row per image of the attribute file; paths begin with `img_align_celeba/`.

    Raises:
        LabelError: A file is not there or cannot be used; every fault is listed.

    Source:
        Liu and others, Deep learning face attributes in the wild, ICCV 2015; the groups of Sagawa
        and others, Distributionally robust neural networks, ICLR 2020.
    """
    root = Path(root)
    _need_folder(root / "img_align_celeba", "the unpacked images")
    lines = _read_lines(root / "list_attr_celeba.txt")
    header = lines[1].split() if len(lines) > 1 else []
    missing = [name for name in ("Blond_Hair", "Male") if name not in header]
    if missing or not re.fullmatch("[0-9]{1,9}", lines[0].strip()):
        raise LabelError(
            f"{root / 'list_attr_celeba.txt'}: found no count in line 1 or no {', '.join(missing)} "
            "in line 2, expected CelebA's own file; copy it again"
        )
    places = header.index("Blond_Hair") + 1, header.index("Male") + 1
    splits = _read_partition(root / "list_eval_partition.txt")
    faults, rows, seen = [], [], set()
    for number, line in enumerate(lines[2:], 3):
        fields = line.split()
        fault = _celeba_fault(fields, len(header) + 1, places, splits, seen)
        if fault:
            faults.append(f"line {number}: {fault}")
            continue
        seen.add(fields[0])
        blond, male = (fields[place] == "1" for place in places)
        path = f"img_align_celeba/{fields[0]}"
        rows.append(LabelledImage(path, _BLOND[blond], _SEX[male], splits[fields[0]]))
    if int(lines[0]) != len(lines) - 2:
        faults.insert(0, f"line 1 announces {int(lines[0])} images, found {len(lines) - 2}")
    _raise(root / "list_attr_celeba.txt", faults)
    return PublishedSet(tuple(rows), _check_counts(root, rows, _CELEBA, _BLOND, _SEX))


def read_waterbirds(root: str | Path) -> PublishedSet:
    """Read the published Waterbirds: target kind of bird, bias background.

    Args:
        root: Folder with `metadata.csv` (columns `img_id`, `img_filename`, `y`, `split`, `place`,
            `place_filename`) and the images it names.

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
            names = _BIRDS[int(bird)], _PLACES[int(place)], _SPLITS[split]
            rows.append(LabelledImage(path, *names))
    table.raise_faults()
    return PublishedSet(tuple(rows), _check_counts(root, rows, _WATERBIRDS, _BIRDS, _PLACES))


def write_label_csv(rows: Iterable[LabelledImage], csv_path: str | Path) -> None:
    """Write rows as the file that `surgeon prune --bias-labels` reads.

    Paths start from the data set's folder: write the file there, or pass `--images`.

    Args:
        rows: All of a set, or those of the splits wanted.
        csv_path: The file; one that is there is replaced.

    Raises:
        ArtefactError: It cannot be written.
    """
    path = Path(csv_path)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LabelledImage._fields)
            writer.writerows(rows)
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error


def _read_partition(path: Path) -> dict[str, str]:
    """Read image names and their splits."""
    found: dict[str, str] = {}
    faults = []
    for number, line in enumerate(_read_lines(path), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in _SPLITS or fields[0] in found:
            faults.append(f"line {number}: '{line[:40]}', expected a new image and 0, 1 or 2")
        else:
            found[fields[0]] = _SPLITS[fields[1]]
    _raise(path, faults)
    return found


def _celeba_fault(
    fields: Sequence[str],
    wanted: int,
    places: tuple[int, int],
    splits: dict[str, str],
    seen: set[str],
) -> str | None:
    """Say what is wrong with one line of attributes."""
    if len(fields) != wanted:
        return f"{len(fields)} fields, expected an image and {wanted - 1} attributes"
    if not _is_inside(fields[0]) or fields[0] in seen:
        return f"'{fields[0]}', expected the name of an image not named before"
    if any(fields[place] not in ("1", "-1") for place in places):
        return f"'{fields[0]}' has another attribute than 1 and -1"
    if fields[0] not in splits:
        return f"'{fields[0]}' has no split in list_eval_partition.txt"
    return None


def _note_faults(table: Table, number: int, path: str, bird: str, place: str, split: str) -> None:
    if path and not _is_inside(path):
        table.fault(f"path '{path}' leaves the folder of the data set", number)
    for column, cell, known in (
        ("y", bird, ("0", "1")),
        ("place", place, ("0", "1")),
        ("split", split, tuple(_SPLITS)),
    ):
        if cell and cell not in known:
            table.fault(f"{column} '{cell}', expected {' or '.join(known)}", number)


def _check_counts(
    root: Path,
    rows: Sequence[LabelledImage],
    published: dict[str, tuple[int, ...]],
    targets: tuple[str, str],
    biases: tuple[str, str],
) -> tuple[str, ...]:
    """Compare with the published counts if all rows are there, else note that it was not done."""
    whole = sum(map(sum, published.values()))
    if len(rows) != whole:
        return (f"{root}: found {len(rows)} rows, the full set has {whole}; {_NO_COUNTS}",)
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


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path


def _need_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise LabelError(f"{folder}: no such folder, expected {what}; give the set's own folder")


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that has some, without blank ones at the end."""
    try:
        lines = path.read_bytes().decode("utf-8").rstrip().splitlines()
    except OSError as error:
        raise LabelError(
            f"{path}: cannot be read ({error.strerror}); give the folder that holds it"
        ) from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: is not text, expected CelebA's file; copy it again") from error
    if not lines:
        raise LabelError(f"{path}: is empty, expected one line per image; copy it again")
    return lines


def _raise(path: Path, faults: Sequence[str]) -> None:
    if faults:
        raise LabelError(
            f"{path}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}; correct the file",
            faults,
        )
