"""Palettes of the coloured digits, and how each protocol lays colour on grey digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Class i owns row i. Note 225, not 255, in rows 3 and 4.
REBIAS = np.array(
    [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225),
        (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128),
    ],
    np.uint8,
)  # fmt: skip
"""`[10, 3]` 0..255: Biased MNIST of ReBias."""
LFF = np.array(
    [
        (0.9837, 0.3125, 0.1686), (0.9905, 0.9156, 0.3515), (0.6730, 0.4611, 0.5798),
        (0.7833, 0.8316, 0.6013), (0.0880, 0.7780, 0.9818), (0.3214, 0.9611, 0.4464),
        (0.0246, 0.2357, 0.7587), (0.5552, 0.1016, 0.7618), (0.2077, 0.3929, 0.0187),
        (0.8337, 0.2024, 0.2669),
    ]
)  # fmt: skip
"""`[10, 3]` 0..1: mean colours of LfF's Colored MNIST and of DebiAN's Multi-Color MNIST."""
LNL = (
    np.array(
        [
            (220, 20, 60), (0, 128, 128), (253, 233, 16), (0, 149, 182), (237, 145, 33),
            (145, 30, 188), (70, 240, 240), (250, 197, 187), (210, 245, 60), (128, 0, 0),
        ]
    )
    / 255
)  # fmt: skip
"""`[10, 3]` 0..1: mean colours of the Colored MNIST of Learning not to learn."""


def paint_ground(images: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Lay white digits on a coloured ground; every pixel that is not black counts as digit.

    Args:
        images: `[N, H, W]` uint8 grey.
        colours: `[N]` rows of `REBIAS`.

    Returns:
        `[N, H, W, 3]` uint8.
    """
    ground = REBIAS[colours][:, None, None, :]
    return np.where((images != 0)[..., None], np.uint8(255), ground)


def paint_digit(images: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colour digits on a black ground: grey level times colour.

    Args:
        images: `[N, H, W]` uint8 grey.
        colours: `[N, 3]` in 0..1.

    Returns:
        `[N, H, W, 3]` uint8, fractions cut off as in LfF.
    """
    out = np.empty((*images.shape, 3), np.uint8)
    for rows in _chunks(len(images)):
        out[rows] = colours[rows, None, None, :] * images[rows, ..., None]
    return out


def paint_halves(images: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Add a colour to each half; only pixels of 255 stay white.

    Args:
        images: `[N, H, W]` uint8 grey.
        left: `[N, 3]` in 0..1, colour of the left half.
        right: `[N, 3]` in 0..1, colour of the right half.

    Returns:
        `[N, H, W, 3]` uint8, fractions cut off as in DebiAN.
    """
    width = images.shape[2]
    is_left = (np.arange(width) < width // 2)[None, None, :, None]
    out = np.empty((*images.shape, 3), np.uint8)
    for rows in _chunks(len(images)):
        ground = 255 * np.where(is_left, left[rows, None, None, :], right[rows, None, None, :])
        grey = images[rows, ..., None].astype(np.float64)
        out[rows] = (grey + np.where(grey < 255, ground, 0)).clip(0, 255)
    return out


def halve(images: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels: `[N, H, W, 3]` to `[N, H / 2, W / 2, 3]` uint8, rounded."""
    n, height, width, channels = images.shape
    out = np.empty((n, height // 2, width // 2, channels), np.uint8)
    for rows in _chunks(n):
        blocks = images[rows].reshape(-1, height // 2, 2, width // 2, 2, channels)
        out[rows] = np.rint(blocks.mean((2, 4)))
    return out


def jitter(means: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Draw one colour per image around its mean, within 0..1.

    Args:
        means: `[N, 3]` in 0..1.
        deviation: Standard deviation of each channel.
        rng: Draws; the first rows do not depend on how many follow.
    """
    return (means + rng.normal(scale=deviation, size=means.shape)).clip(0, 1)


def _chunks(num: int, size: int = 4096) -> Iterator[slice]:
    """Cut rows into slices, so that whole sets are never held as floats."""
    return (slice(start, start + size) for start in range(0, num, size))
