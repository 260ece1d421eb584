"""Images: every file decoded once, hashed, and served in batches as the network wants it."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from surgeon.errors import LabelError, OptionError
from surgeon.groups import Labels
from surgeon.preprocessing import Preprocessing, open_image

_BUDGET = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Images:
    """Serve N preprocessed images, from memory or decoded again for each batch.

    Args:
        digests: for each image the sha256 of its size and its decoded 8-bit RGB pixels.
        device: where batches are wanted.
        kept: `[N, 3, H, W]` float32, all images, on any device; None if they take too much memory.
        load: decodes the image at a position to `[3, H, W]` float32; used where `kept` is None.
        workers: threads that decode.
    """

    digests: tuple[bytes, ...]
    device: torch.device
    kept: Tensor | None
    load: Callable[[int], Tensor] | None = None
    workers: int = 1

    def __len__(self) -> int:
        return len(self.digests)

    def batch(self, rows: Tensor) -> Tensor:
        """Give some images.

        Args:
            rows: `[n]` int64 positions, 0..N-1.

        Returns:
            `[n, 3, H, W]` float32 on `device`.

        Raises:
            LabelError: an image file has gone bad since it was first read.
        """
        if self.kept is not None:
            return self.kept[rows.to(self.kept.device)].to(self.device)
        assert self.load is not None
        with _decoders(self.workers) as pool:
            return torch.stack(list(pool.map(self.load, rows.tolist()))).to(self.device)


def read_images(
    labels: Labels,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    sixteen_bit: str | None = None,
    workers: int | None = None,
) -> Images:
    """Decode every image once, hash it, and keep it preprocessed if all of them fit in memory.

    All images are kept up to 4 GiB; on a CUDA device if they take a quarter of its free memory at
    most, else on the CPU.

    Args:
        labels: the rows.
        preprocessing: the network's.
        device: where batches are wanted.
        sixteen_bit: what to do with 16-bit grey images, as for `open_image`.
        workers: threads that decode; by default one per processor, up to 8.

    Raises:
        LabelError: images cannot be used; every one is listed.
        OptionError: `workers` is below 1.
    """
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise OptionError(f"workers is {workers}, expected 1 or more")
    num, shape = len(labels.paths), preprocessing.input_size
    transform = preprocessing.transform()
    bytes_needed = 4 * num * shape[0] * shape[1] * shape[2]
    kept = torch.empty((num, *shape)) if bytes_needed <= _BUDGET else None

    def load(row: int) -> Tensor:
        return transform(open_image(labels.paths[row], sixteen_bit=sixteen_bit))

    def read(row: int) -> bytes | LabelError:
        try:
            image = open_image(labels.paths[row], sixteen_bit=sixteen_bit)
            if kept is not None:
                kept[row] = transform(image)
        except LabelError as error:
            return error
        digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
        digest.update(image.tobytes())
        return digest.digest()

    with _decoders(workers) as pool:
        results = list(pool.map(read, range(num)))
    digests = tuple(result for result in results if isinstance(result, bytes))
    faults = [
        f"row {row}: {result}"
        for row, result in zip(labels.rows, results, strict=True)
        if isinstance(result, LabelError)
    ]
    if faults:
        raise LabelError(
            f"{labels.csv}: {len(faults)} of {num} images cannot be used; correct the files or "
            "remove their rows",
            faults,
        )
    if kept is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = kept.to(device) if bytes_needed <= free // 4 else kept
    return Images(digests, device, kept, load, workers)


@contextmanager
def _decoders(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of decoding threads; a large image is no cause for a warning."""
    # Filters are shared by all threads, so they are set here and not where an image is decoded.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield pool
