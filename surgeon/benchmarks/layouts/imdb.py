"""IMDB faces with extreme biases, as Learning not to learn (LNL) publishes them."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from surgeon.benchmarks.layouts.base import (
    NO_COUNTS,
    LabelledImage,
    PublishedSet,
    is_inside,
    need_folder,
    raise_faults,
)
from surgeon.errors import LabelError

Part = Literal["eb1", "eb2", "test"]

_IMAGES = "imdb_crop"
_SEX = ("female", "male")
# What a pickled array of labels is made of; anything else could run code.
_HARMLESS = {
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def read_imdb(root: str | Path, train: Literal["eb1", "eb2"], test: Part) -> PublishedSet:
    """Read the IMDB faces: target sex, bias age.

    In `eb1` women are below 30 and men above 39, in `eb2` the other way round; `test` has both of
    each. A tenth of the biased rows, by a hash of their names, becomes `val`: none is published.

    Args:
        root: Folder with `imdb_crop/`, and LNL's `imdb_age_gender.npy`, `imdb_split.npy`,
            `eb1_img_list.npy` and `eb2_img_list.npy`.
        train: Rows for training.
        test: Rows for the report.

    Returns:
        One row per image of both lists; paths begin with `imdb_crop/`.

    Raises:
        LabelError: A file is not there or cannot be used; every fault is listed.

    Source:
        Kim and others, Learning not to learn, CVPR 2019, section 4.1.
    """
    root = Path(root)
    need_folder(root / _IMAGES, "the unpacked images")
    known = _labels(root / "imdb_age_gender.npy")
    rows, faults, seen = [], [], set()
    parts: list[tuple[Part, str]] = [(train, "train"), (test, "test")]
    for part, split in parts:
        for image in _images(root, part):
            if not is_inside(image) or image in seen:
                faults.append(f"{part}: '{image}', expected an image not named before")
            elif image not in known:
                faults.append(f"{part}: '{image}' has no age and gender")
            elif (age := _age(known[image][0])) and known[image][1] in (0, 1):
                own = "val" if split == "train" and _held_out(image) else split
                path = f"{_IMAGES}/{image}"
                rows.append(LabelledImage(path, _SEX[int(known[image][1])], age, own))
            else:
                faults.append(
                    f"{part}: '{image}': found age {known[image][0]} and gender {known[image][1]}, "
                    "expected 0 to 29 or 40 and more, and 0 or 1"
                )
            seen.add(image)
    raise_faults(root, faults)
    return PublishedSet(tuple(rows), (f"{root}: {NO_COUNTS}; a tenth of {train} is val",))


def _age(years: float) -> str | None:
    if 0 <= years <= 29:
        return "below 30"
    return "above 39" if years >= 40 else None


def _held_out(image: str) -> bool:
    return int(hashlib.sha256(image.encode()).hexdigest(), 16) % 10 == 0


def _labels(path: Path) -> dict[str, tuple[float, float]]:
    """Read image to age and gender."""
    found = _read(path)
    if not isinstance(found, Mapping):
        raise LabelError(f"{path}: holds no table, expected one of images; copy it again")
    labels, faults = {}, []
    for image, entry in found.items():
        try:
            labels[_text(image)] = float(entry["age"]), float(entry["gender"])
        except (KeyError, TypeError, ValueError, IndexError):
            faults.append(f"'{_text(image)}': expected an age and a gender, found {entry!r}"[:200])
    raise_faults(path, faults)
    return labels


def _images(root: Path, part: Part) -> Sequence[str]:
    """Read the names of a part's images."""
    path = root / ("imdb_split.npy" if part == "test" else f"{part}_img_list.npy")
    found = _read(path)
    if part == "test":
        found = found.get("test_list") if isinstance(found, Mapping) else None
    if not isinstance(found, list | tuple | np.ndarray) or not len(found):
        raise LabelError(f"{path}: holds no list of images, expected LNL's file; copy it again")
    return [_text(image) for image in found]


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _read(path: Path) -> Any:
    """Read a NumPy file of objects, and refuse one that would run code."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, _, dtype = read(file)
            if dtype.hasobject:
                found = _Careful(file, encoding="latin1").load()
            else:
                found = np.fromfile(file, dtype).reshape(shape)
    except OSError as error:
        raise LabelError(
            f"{path}: cannot be read ({error.strerror}); give the folder that holds it"
        ) from error
    except (ValueError, EOFError, AttributeError, KeyError, pickle.UnpicklingError) as error:
        raise LabelError(f"{path}: cannot be used ({error}); copy it again") from error
    whole = isinstance(found, np.ndarray) and found.ndim == 0
    return found.item() if whole else found


class _Careful(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"refused: it wants to run {module}.{name}")
        return super().find_class(module, name)
