"""Ten corruptions of 32 x 32 images that need no file and no program beside Python's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, uniform_filter1d

_SIDE = 32


def corrupt(images: np.ndarray, kinds: np.ndarray, seeds: np.ndarray, *, seed: int) -> np.ndarray:
    """Corrupt each image in its own way, at the highest of the five severities.

    Equal image, kind and seeds give equal pixels, whatever other images there are.

    Args:
        images: `[N, 32, 32, 3]` uint8.
        kinds: `[N]` positions in `CORRUPTIONS`.
        seeds: `[N]` non-negative, one per image, for example its position in the data set.
        seed: Of the whole set.

    Returns:
        `[N, 32, 32, 3]` uint8.

    Source:
        Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
        perturbations, ICLR 2019: their parameters for CIFAR at severity 5, which is what LfF's
        setting 4 gives. Written anew on numpy, SciPy and Pillow, so that random numbers differ.
    """
    out = np.empty_like(images)
    functions = list(CORRUPTIONS.values())
    for i, kind in enumerate(kinds.tolist()):
        rng = np.random.default_rng([seed, int(seeds[i])])
        pixels = functions[kind](images[i] / 255, rng)
        # The published sets cut fractions off, which leaves 99 of an untouched 100 by chance.
        out[i] = np.rint(pixels.clip(0, 1) * 255)
    return out


def _brightness(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = (hsv[..., 2] + 0.3).clip(0, 1)
    return hsv_to_rgb(hsv)


def _contrast(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    means = x.mean((0, 1), keepdims=True)
    return (x - means) * 0.15 + means


def _gaussian_noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(scale=0.1, size=x.shape)


def _fog(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a plasma cloud and scale back to the image's own maximum."""
    thickness = 1.5
    return (x + thickness * _plasma(rng, decay=1.75)[..., None]) * x.max() / (x.max() + thickness)


def _elastic(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move three corners by up to 3 % of the side, then every pixel by smoothed noise."""
    centre, arm = _SIDE // 2, _SIDE // 3
    corners = centre + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-0.03 * _SIDE, 0.03 * _SIDE, size=corners.shape)
    # Solve for the map from moved to original positions; [row, column, 1] times it.
    matrix = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    # Rows and columns trade places freely: the corners are drawn symmetrically.
    channels = [
        affine_transform(x[..., c], matrix[:2].T, matrix[2], order=1, mode="mirror")
        for c in range(3)
    ]
    shift = [
        0.1
        * _SIDE
        * gaussian_filter(
            rng.uniform(-1, 1, (_SIDE, _SIDE)), 0.03 * _SIDE, mode="reflect", truncate=3
        )
        for _ in range(2)
    ]
    at = np.indices((_SIDE, _SIDE)) + shift
    return np.stack([map_coordinates(c, at, order=1, mode="reflect") for c in channels], axis=-1)


def _gaussian_blur(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return gaussian_filter(x, (1, 1, 0), mode="nearest")


def _defocus_blur(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    # The disk of radius 1.5 covers all nine pixels around one, with equal weight.
    return uniform_filter1d(uniform_filter1d(x, 3, 0, mode="mirror"), 3, 1, mode="mirror")


def _impulse_noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hit, salt = rng.random(x.shape) < 0.07, rng.random(x.shape) < 0.5
    return np.where(hit, salt, x)


def _saturate(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    hsv = rgb_to_hsv(x)
    hsv[..., 1] = (hsv[..., 1] * 2.5 + 0.2).clip(0, 1)
    return hsv_to_rgb(hsv)


def _pixelate(x: np.ndarray, _: np.random.Generator) -> np.ndarray:
    image, less = Image.fromarray((x * 255).round().astype(np.uint8)), int(0.65 * _SIDE)
    coarse = image.resize((less, less), Image.Resampling.BOX)
    return np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BOX)) / 255


def _plasma(rng: np.random.Generator, *, decay: float) -> np.ndarray:
    """Draw a cloud by diamonds and squares: `[32, 32]` in 0..1, the same at opposite edges."""
    height = np.zeros((_SIDE, _SIDE))
    step, wibble = _SIDE, 100.0

    def mean_of(total: np.ndarray) -> np.ndarray:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = height[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        height[half::step, half::step] = mean_of(rows + np.roll(rows, -1, 1))
        centres, corners = height[half::step, half::step], height[::step, ::step]
        across = corners + np.roll(corners, -1, 1)
        height[::step, half::step] = mean_of(centres + np.roll(centres, 1, 0) + across)
        down = corners + np.roll(corners, -1, 0)
        height[half::step, ::step] = mean_of(centres + np.roll(centres, 1, 1) + down)
        step, wibble = half, wibble / decay
    height -= height.min()
    return height / height.max()


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "gaussian-noise": _gaussian_noise,
    "fog": _fog,
    "elastic": _elastic,
    "gaussian-blur": _gaussian_blur,
    "defocus-blur": _defocus_blur,
    "impulse-noise": _impulse_noise,
    "saturate": _saturate,
    "pixelate": _pixelate,
}
"""Name to function, in the order of the classes that own them."""
