"""CelebA as it is published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from surgeon.benchmarks.layouts.base import (
    NO_COUNTS,
    SPLITS,
    LabelledImage,
    PublishedSet,
    check_counts,
    is_inside,
    need_folder,
    raise_faults,
)
from surgeon.errors import LabelError

# Split to the counts of (target, bias) groups: first target first.
_CELEBA = {
    "train": (71_629, 66_874, 22_880, 1_387),
    "val": (8_535, 8_276, 2_874, 182),
    "test": (9_767, 7_535, 2_480, 180),
}
_SEX = ("female", "male")
_NAMES = {"Blond_Hair": ("not blond", "blond"), "Heavy_Makeup": ("no makeup", "makeup")}


def read_celeba(
    root: str | Path, target: Literal["Blond_Hair", "Heavy_Makeup"] = "Blond_Hair"
) -> PublishedSet:
    """Read CelebA's own files: target an attribute, bias sex.

    Args:
        root: Folder with `img_align_celeba/`, `list_attr_celeba.txt`, `list_eval_partition.txt`.
        target: The attribute, as the files name it; group counts are checked for blond hair.

    Returns:
        One row per image of the attribute file; paths begin with `img_align_celeba/`.

    Raises:
        LabelError: A file is not there or cannot be used; every fault is listed.

    Source:
        Liu and others, Deep learning face attributes in the wild, ICCV 2015; the groups of Sagawa
        and others, Distributionally robust neural networks, ICLR 2020.
    """
    root = Path(root)
    need_folder(root / "img_align_celeba", "the unpacked images")
    lines = _read_lines(root / "list_attr_celeba.txt")
    header = lines[1].split() if len(lines) > 1 else []
    missing = [name for name in (target, "Male") if name not in header]
    if missing or not re.fullmatch("[0-9]{1,9}", lines[0].strip()):
        raise LabelError(
            f"{root / 'list_attr_celeba.txt'}: found no count in line 1 or no {', '.join(missing)} "
            "in line 2, expected CelebA's own file; copy it again"
        )
    places = header.index(target) + 1, header.index("Male") + 1
    splits = _read_partition(root / "list_eval_partition.txt")
    faults, rows, seen = [], [], set()
    for number, line in enumerate(lines[2:], 3):
        fields = line.split()
        fault = _celeba_fault(fields, len(header) + 1, places, splits, seen)
        if fault:
            faults.append(f"line {number}: {fault}")
            continue
        seen.add(fields[0])
        has, male = (fields[place] == "1" for place in places)
        path = f"img_align_celeba/{fields[0]}"
        rows.append(LabelledImage(path, _NAMES[target][has], _SEX[male], splits[fields[0]]))
    if int(lines[0]) != len(lines) - 2:
        faults.insert(0, f"line 1 announces {int(lines[0])} images, found {len(lines) - 2}")
    raise_faults(root / "list_attr_celeba.txt", faults)
    if target != "Blond_Hair":
        return PublishedSet(tuple(rows), (f"{root}: {NO_COUNTS}",))
    return PublishedSet(tuple(rows), check_counts(root, rows, _CELEBA, _NAMES[target], _SEX))


def _read_partition(path: Path) -> dict[str, str]:
    """Read image names and their splits."""
    found: dict[str, str] = {}
    faults = []
    for number, line in enumerate(_read_lines(path), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in SPLITS or fields[0] in found:
            faults.append(f"line {number}: '{line[:40]}', expected a new image and 0, 1 or 2")
        else:
            found[fields[0]] = SPLITS[fields[1]]
    raise_faults(path, faults)
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
    if not is_inside(fields[0]) or fields[0] in seen:
        return f"'{fields[0]}', expected the name of an image not named before"
    if any(fields[place] not in ("1", "-1") for place in places):
        return f"'{fields[0]}' has another attribute than 1 and -1"
    if fields[0] not in splits:
        return f"'{fields[0]}' has no split in list_eval_partition.txt"
    return None


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
