"""Changes of an image that the given network does not mind, made at random while it is edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from surgeon.data import Data, extract
from surgeon.subject import Subject

# A change is harmless if it surely takes less than this share of what a head knows beyond chance.
_HARMLESS = 0.1
# One-sided, 95 %.
_SURELY = 1.645
# Images are shifted by at most this share of their side, usual for images of 32 pixels.
_REACH = 1 / 8


@dataclass(frozen=True)
class Augmentation:
    """Mirror every second image, shift each, or both; drawn anew for every batch."""

    mirror: bool = False
    shift: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch.

        Args:
            images: `[n, 3, H, W]`.
            generator: On the CPU; left alone where nothing is changed.

        Returns:
            `[n, 3, H, W]`; the images themselves where nothing is changed.
        """
        if self.shift:
            images = shifted(images, generator)
        if self.mirror:
            picked = torch.rand(len(images), generator=generator) < 0.5
            chosen = picked.to(images.device)[:, None, None, None]
            images = torch.where(chosen, mirrored(images), images)
        return images

    def __str__(self) -> str:
        """Name the changes: `mirrored`, `shifted`, `mirrored and shifted` or `none`."""
        names = [name for name, on in (("mirrored", self.mirror), ("shifted", self.shift)) if on]
        return " and ".join(names) or "none"


def mirrored(images: Tensor) -> Tensor:
    """Turn left to right, `[n, 3, H, W]` to the same."""
    return images.flip(3)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its sides; what it shows at the rim is reflected.

    Args:
        images: `[n, 3, H, W]`.
        generator: On the CPU.

    Returns:
        `[n, 3, H, W]`.
    """
    rows, columns = (_shifted(len(images), size, generator) for size in images.shape[2:])
    return pick(images, rows, columns)


def _shifted(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Return `[num, size]` positions along one side, moved and reflected at both ends."""
    reach = max(1, round(_REACH * size))
    moved = torch.arange(size) + torch.randint(-reach, reach + 1, (num, 1), generator=generator)
    last = size - 1
    return last - (last - moved.abs()).abs()


def pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take rows and columns of each image on its own.

    Args:
        images: `[n, C, H, W]`.
        rows: `[n, h]` int64 positions.
        columns: `[n, w]` int64 positions.

    Returns:
        `[n, C, h, w]`.
    """
    rows, columns = rows.to(images.device), columns.to(images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[each, channel, rows[:, None, :, None], columns[:, None, None, :]]


def harmless(subject: Subject, data: Data, *, seed: int) -> Augmentation:
    """Find the changes that the network's own features do not mind.

    A linear discriminant is fitted on the features of the fit rows, drawn with groups counting
    equally so that it reads the target and not the bias. A change is harmless if on the select
    rows, groups counting equally, the changed images surely (one-sided 95 % of the paired
    difference) cost it less than a tenth of its accuracy beyond chance. Digits fail, as does every
    network that was never shown changed images; a network of photographs passes.

    Args:
        subject: The network as it is given.
        data: Labelled rows; only `data.fit` and `data.select` are read.
        seed: Of the draw and of the shifts tried.
    """
    generator = torch.Generator().manual_seed(seed)
    order = data.fit.balanced_order(generator)
    features = extract(subject, data.fit).features[order].double()
    read = _discriminant(features, data.fit.groups.target[order])
    if read is None:
        return Augmentation()

    def correct(change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        seen = extract(subject, data.select, change=change).features
        return (read(seen.double()) == data.select.groups.target).double()

    weights = data.select.groups.weights()
    weights /= weights.sum()
    plain = correct()
    chance = 1 / len(data.fit.groups.target.unique())
    allowed = _HARMLESS * (float(weights @ plain) - chance)

    def passes(change: Callable[[Tensor], Tensor]) -> bool:
        lost = plain - correct(change)
        mean = float(weights @ lost)
        error = float((weights.square() @ (lost - mean).square()).sqrt())
        # One row more, so that a few rows that all agree prove nothing.
        return mean + _SURELY * error + float(weights.max()) < allowed

    return Augmentation(
        mirror=passes(mirrored), shift=passes(lambda images: shifted(images, generator))
    )


def _discriminant(x: Tensor, target: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Fit the linear discriminant of equally likely classes that share one covariance.

    Args:
        x: `[N, D]` float64 features.
        target: `[N]` int64.

    Returns:
        What takes `[n, D]` features to `[n]` targets; None where there is one class alone, or
        nothing varies within the classes.
    """
    classes, index = target.unique(return_inverse=True)
    means = torch.stack([x[index == c].mean(0) for c in range(len(classes))])
    inside = x - means[index]
    if len(classes) < 2 or not bool(inside.any()):
        return None
    shared, _ = ledoit_wolf(inside.numpy(), assume_centered=True)
    weight = torch.linalg.lstsq(torch.from_numpy(shared), means.T, driver="gelsy").solution
    offset = (weight * means.T).sum(0) / 2
    return lambda features: classes[(features @ weight - offset).argmax(1)]
