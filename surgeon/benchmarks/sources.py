"""MNIST and CIFAR-10 as they lie on disk; nothing is downloaded and nothing is written."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets import CIFAR10

from surgeon.errors import LabelError

CIFAR_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# MD5 of the images followed by the labels, without their headers.
_MNIST_MD5 = {
    "train": "365dab9bac26085dc69f1022fe166e2f",
    "test": "a9c5e64a683c5dd2f6a9bf7c61b53e6f",
}
_CIFAR_ROWS = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True, eq=False)
class Source:
    """One part of a data set, in its original order."""

    labels: np.ndarray
    """`[N]` int64 classes."""
    sentence: str
    """Which copy it is."""
    read: Callable[[np.ndarray], np.ndarray]
    """From positions `[n]` to their images: `[n, H, W]` or `[n, H, W, 3]` uint8."""

    def __len__(self) -> int:
        return len(self.labels)


def mnist(part: str) -> Source:
    """Find `train` or `test` of MNIST: the four original files, compressed or not.

    They are looked for in torchvision's place, `MNIST/raw`, under `$SURGEON_DATA` and
    `$SURGEON_DATA/data`. Other digits in the same format are taken too, and the sentence says so.

    Raises:
        LabelError: They are not there, or broken.
    """
    prefix = {"train": "train", "test": "t10k"}[part]
    folder = _find("MNIST/raw", f"{prefix}-images-idx3-ubyte", (".gz", ""))
    images, image_bytes = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    labels, label_bytes = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max(initial=0) > 9:
        raise LabelError(
            f"{folder}: found {len(images)} images of {images.shape[1]} x {images.shape[2]} and "
            f"{len(labels)} labels up to {labels.max(initial=0)}, expected as many images of "
            "28 x 28 as labels 0..9; copy the four files again"
        )
    digest = hashlib.md5(image_bytes + label_bytes, usedforsecurity=False).hexdigest()
    original = digest == _MNIST_MD5[part]
    sentence = (
        "MNIST, the original files"
        if original
        else f"digits in MNIST's format, not MNIST itself ({len(labels)} in {part})"
    )
    return Source(labels.astype(np.int64), sentence, lambda rows: images[rows])


def cifar10(part: str) -> Source:
    """Find `train` or `test` of CIFAR-10, lossless if it is there, else the JPEG copy.

    Under `$SURGEON_DATA` and `$SURGEON_DATA/data`: torchvision's `cifar-10-batches-py`, or
    `cifar10-jpg` with `train.tar.gz`, `test.tar.gz` (members `train/airplane/0000.jpg`, numbered
    within the class) and `labels_in_original_order.npz`. Only the images asked for are decoded.

    Raises:
        LabelError: Neither is there, or it is broken.
    """
    for root in _roots():
        if (root / "cifar-10-batches-py").is_dir():
            return _lossless(root, part)
    folder = _find("cifar10-jpg", f"{part}.tar", (".gz",), "or cifar-10-batches-py beside it")
    labels = _jpeg_labels(folder / "labels_in_original_order.npz", part)
    sentence = "CIFAR-10, JPEG copy (lossy: not comparable with published CIFAR-10 numbers)"
    archive = folder / f"{part}.tar.gz"
    return Source(labels, sentence, lambda rows: _read_jpegs(archive, part, labels, rows))


def _roots() -> list[Path]:
    """Return the folders that data may lie in."""
    given = os.environ.get("SURGEON_DATA")
    if not given:
        raise LabelError(
            "SURGEON_DATA: is not set, expected the folder with the data sets; set the variable"
        )
    return [Path(given), Path(given) / "data"]


def _find(folder: str, file: str, endings: tuple[str, ...], instead: str = "") -> Path:
    """Return the folder below a root that holds the file, with one of the endings."""
    roots = _roots()
    for root in roots:
        if any((root / folder / f"{file}{ending}").is_file() for ending in endings):
            return root / folder
    raise LabelError(
        f"SURGEON_DATA: no {folder}/{file}{endings[0]} in {roots[0]} or its folder data, expected "
        f"the files of that data set{f' ({instead})' if instead else ''}; copy them there"
    )


def _read_idx(stem: Path, dimensions: int) -> tuple[np.ndarray, bytes]:
    """Read a file of unsigned bytes in MNIST's format: as an array, and its bytes."""
    path = stem if stem.is_file() else stem.with_name(f"{stem.name}.gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise LabelError(
            f"{path}: cannot be read ({error}), expected one of MNIST's four files; copy it again"
        ) from error
    header, body = content[: 4 + 4 * dimensions], content[4 + 4 * dimensions :]
    shape = tuple(int(size) for size in np.frombuffer(header[4 : len(header) // 4 * 4], ">u4"))
    if header[:4] != bytes((0, 0, 8, dimensions)) or np.prod(shape) != len(body) or not body:
        raise LabelError(
            f"{path}: found {len(body)} bytes of pixels or labels and a header that announces "
            f"{list(shape)}, expected unsigned bytes in {dimensions} dimensions; copy it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape), body


def _lossless(root: Path, part: str) -> Source:
    try:
        found = CIFAR10(str(root), train=part == "train", download=False)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise LabelError(
            f"{root / 'cifar-10-batches-py'}: {str(error).splitlines()[0]} Expected torchvision's "
            "original files; unpack cifar-10-python.tar.gz again"
        ) from error
    images = np.asarray(found.data)
    sentence = "CIFAR-10, the original files"
    return Source(np.asarray(found.targets, np.int64), sentence, lambda rows: images[rows])


def _jpeg_labels(path: Path, part: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays[part].astype(np.int64)
    except (OSError, ValueError, KeyError, zlib.error) as error:
        raise LabelError(
            f"{path}: cannot be read ({error}), expected arrays train and test; copy it again"
        ) from error
    rows = _CIFAR_ROWS[part]
    if labels.shape != (rows,) or np.bincount(labels.clip(0), minlength=10).tolist() != (
        [rows // 10] * 10
    ):
        raise LabelError(
            f"{path}: found {part} labels of shape {list(labels.shape)}, expected {rows} of 0..9, "
            "each equally often; copy it again"
        )
    return labels


def _read_jpegs(archive: Path, part: str, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Decode some images out of the archive; file k of a class is its k-th row."""
    place = np.empty_like(labels)
    for own in range(len(CIFAR_NAMES)):
        members = np.flatnonzero(labels == own)
        place[members] = np.arange(len(members))
    wanted: dict[str, list[int]] = {}
    for i, row in enumerate(rows.tolist()):
        name = f"{part}/{CIFAR_NAMES[labels[row]]}/{place[row]:04d}.jpg"
        wanted.setdefault(name, []).append(i)
    images = np.empty((len(rows), 32, 32, 3), np.uint8)
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.name in wanted and (file := tar.extractfile(member)):
                    images[wanted.pop(member.name)] = _decode(file.read(), member.name)
                if not wanted:
                    return images
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise LabelError(
            f"{archive}: cannot be read ({error}), expected JPEG files of 32 x 32; copy it again"
        ) from error
    if wanted:
        raise LabelError(
            f"{archive}: {len(wanted)} of {len(rows)} images are missing, first {min(wanted)}; "
            "copy it again"
        )
    return images


def _decode(content: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image") from error
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return pixels
