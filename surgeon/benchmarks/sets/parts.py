"""What the sets have in common: rows counted, parts made and cut."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surgeon.benchmarks.protocol import Part, Setting
from surgeon.errors import OptionError

# Select rows that a short labelled file keeps at least, though never more than a third.
_FLOOR = 50
_FEWEST = 20


def labelled_rows(setting: Setting, default: int, most: int) -> int:
    """Return how many labelled rows are wanted.

    Raises:
        OptionError: More than there are, or too few to fit and to choose by.
    """
    num = default if setting.rows is None else setting.rows
    if not min(_FEWEST, default) <= num <= most:
        raise OptionError(
            f"--rows: found {num}, expected {_FEWEST} to {most}, which {setting.benchmark} has"
        )
    return num


def num_select(num: int, share: float) -> int:
    """Return how many of the labelled rows are select rows: the share, or 50 if that is more.

    A third at most, so that most of a short file is left for the fit.
    """
    return max(round(num * share), min(num // 3, _FLOOR))


def make_part(images: np.ndarray | Tensor, target: np.ndarray, biases: np.ndarray) -> Part:
    """Make a part of `[N, H, W, 3]` pixels (or `[N, 3, H, W]`, if a tensor) and labels."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    columns = biases if biases.ndim == 2 else biases[:, None]
    return Part(
        images,
        torch.from_numpy(target.astype(np.int64)),
        torch.from_numpy(columns.astype(np.int64)),
    )


def take_rows(part: Part, rows: slice) -> Part:
    """Take some rows."""
    return Part(part.images[rows], part.target[rows], part.biases[rows])


def fit_and_select(labelled: Part, share: float) -> tuple[Part, Part]:
    """Cut labelled rows: the first are fit rows, the last, of that share, select rows."""
    cut = len(labelled) - num_select(len(labelled), share)
    return take_rows(labelled, slice(cut)), take_rows(labelled, slice(cut, None))
