"""What a report shows beside its figures: images that changed sides, and features in the plane."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from surgeon.data import Data, Rows, extract
from surgeon.edit import Edit
from surgeon.gradcam import FeatureMap, look
from surgeon.methods.base import device_changes
from surgeon.subject import Subject

# What became of a row, by whether the network was right before and is right after.
KINDS = {"fixed": (False, True), "broken": (True, False), "wrong": (False, False)}
_GROUPS, _EACH, _SIDE = 12, 4, 96
_POINTS = 500


@dataclass(frozen=True, eq=False)
class Example:
    """One report row that the network gets wrong, before or after."""

    kind: str
    """`fixed` is right only after, `broken` only before, `wrong` neither."""
    path: str
    """Image file, from the label file's folder on."""
    target: str
    bias: Mapping[str, str]
    before: str
    """Class the network named before."""
    after: str
    image: bytes
    """What the network sees, as PNG, at most 96 pixels wide and high."""
    looks: Mapping[str, bytes] = field(default_factory=dict)
    """`before` and `after`: where the network looks for the class it names, if that was asked."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the pictures."""
        names = ("kind", "path", "target", "before", "after")
        return {**{name: getattr(self, name) for name in names}, "bias": dict(self.bias)}


@dataclass(frozen=True, eq=False)
class Plane:
    """Features of some rows along their two directions of greatest variance."""

    points: Tensor
    """`[n, 2]`, each column with variance 1."""
    shares: tuple[float, float]
    """Of all variance, that along each direction."""

    def to_json(self) -> dict[str, Any]:
        """Return points and shares, rounded for a picture."""
        points = [[round(x, 3) for x in point] for point in self.points.tolist()]
        return {"points": points, "shares": [round(share, 4) for share in self.shares]}


@dataclass(frozen=True, eq=False)
class Views:
    """What is shown of an operation's report rows."""

    examples: tuple[Example, ...]
    """By group, worst first, and kind; a few of each."""
    before: Plane
    """The bottleneck."""
    after: Plane
    """What the head is given: the bottleneck behind the erasure, if there is one."""
    target: tuple[str, ...]
    """Of the plane's rows."""
    bias: Mapping[str, tuple[str, ...]]
    """Bias column to the values of the plane's rows."""

    def pictures(self) -> dict[str, bytes]:
        """Return the PNG files that belong into the folder of the report, by name."""
        found = {}
        for stem, example in self._named():
            found[f"{stem}.png"] = example.image
            found |= {f"{stem}-{when}.png": look for when, look in example.looks.items()}
        return found

    def to_json(self) -> dict[str, Any]:
        """Return what `report.json` holds of it."""
        return {
            "examples": [
                {
                    **example.to_json(),
                    "file": f"{stem}.png",
                    "looks": {when: f"{stem}-{when}.png" for when in example.looks},
                }
                for stem, example in self._named()
            ],
            "features": {
                "before": self.before.to_json(),
                "after": self.after.to_json(),
                "target": list(self.target),
                "bias": {column: list(values) for column, values in self.bias.items()},
            },
        }

    def _named(self) -> list[tuple[str, Example]]:
        return [(f"examples/{k:03d}", example) for k, example in enumerate(self.examples, 1)]


def view(
    subject: Subject,
    data: Data,
    edit: Edit,
    before: Tensor,
    after: Tensor,
    *,
    where: FeatureMap | None = None,
) -> Views:
    """Look at report rows before and after an edit.

    Of the twelve groups with the lowest accuracy before, up to four rows of each kind are shown,
    the first in the file; of all rows, 500 at even distances.

    Args:
        subject: The network.
        data: Labelled rows.
        edit: The operation.
        before: `[N]` bool, whether each report row is right before.
        after: The same, after.
        where: The feature map to draw where the network looks on; None draws nothing of that.
    """
    rows, changes = data.report, device_changes(subject, edit)
    chosen = _chosen(rows, before, after)
    spaced = torch.linspace(0, len(rows) - 1, min(_POINTS, len(rows))).round().long()
    picked = torch.cat([torch.tensor([row for _, row in chosen], dtype=torch.int64), spaced])
    seen = Rows(rows.images, rows.groups.take(picked), rows.index[picked])
    old, new = extract(subject, seen), extract(subject, seen, overrides=changes)
    features = edit.erasure(new.features) if edit.erasure else new.features
    groups, count = rows.groups.take(spaced), len(chosen)
    classes = [outputs.logits[:count].argmax(1) for outputs in (old, new)]
    named = [[rows.groups.target_names[i] for i in own] for own in classes]
    x = seen.batch(torch.arange(count))
    images = [_image(subject, row) for row in x.cpu()]
    looks: Sequence[Mapping[str, bytes]] = [{}] * count
    if where and count:
        edited = subject.with_tensors(changes)
        found = [
            look(net, where, x, own) for net, own in zip((subject, edited), classes, strict=True)
        ]
        looks = [
            {"before": _png(_overlaid(image, was)), "after": _png(_overlaid(image, is_now))}
            for image, was, is_now in zip(images, *found, strict=True)
        ]
    return Views(
        examples=tuple(
            Example(kind, *_row(data, row), was, is_now, _png(image), heat)
            for (kind, row), was, is_now, image, heat in zip(
                chosen, *named, images, looks, strict=True
            )
        ),
        before=_plane(old.features[count:]),
        after=_plane(features[count:]),
        target=tuple(groups.target_names[i] for i in groups.target),
        bias={
            column: tuple(groups.value_names[k][i] for i in groups.biases[:, k])
            for k, column in enumerate(groups.columns)
        },
    )


def _chosen(rows: Rows, before: Tensor, after: Tensor) -> list[tuple[str, int]]:
    """Choose kinds and positions of the rows that are shown as images."""
    index = rows.groups.index
    accuracy = {int(g): float(before[index == g].float().mean()) for g in index.unique()}
    worst = sorted(accuracy, key=lambda group: (accuracy[group], group))[:_GROUPS]
    found = []
    for group in worst:
        for kind, (was, is_now) in KINDS.items():
            members = (index == group) & (before == was) & (after == is_now)
            found += [(kind, row) for row in members.nonzero().flatten()[:_EACH].tolist()]
    return found


def _row(data: Data, row: int) -> tuple[str, str, dict[str, str]]:
    """Return a report row's image file, target and biases."""
    rows, labels, groups = data.report, data.labels, data.report.groups
    place, folder = labels.paths[int(rows.index[row])], labels.csv.parent
    path = place.relative_to(folder) if place.is_relative_to(folder) else Path(place.name)
    biases = {
        column: groups.value_names[k][int(groups.biases[row, k])]
        for k, column in enumerate(groups.columns)
    }
    return path.as_posix(), groups.target_names[int(groups.target[row])], biases


def _image(subject: Subject, x: Tensor) -> Image.Image:
    """Turn what the network is given back into an image."""
    prepared = subject.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (prepared.mean, prepared.std))
    pixels = ((x * std + mean).clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((_SIDE, _SIDE))
    return image


def _overlaid(image: Image.Image, heat: Tensor) -> Image.Image:
    """Lay a map, 0 to 1, over the grey image: from dark purple for nothing to bright yellow."""
    grey = Image.fromarray((255 * heat).round().byte().numpy())
    fine = np.asarray(grey.resize(image.size, Image.Resampling.BICUBIC))
    layer = Image.fromarray(colormaps["inferno"](fine, bytes=True)[..., :3])
    return Image.blend(image.convert("L").convert("RGB"), layer, 0.6).quantize(64)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _plane(features: Tensor) -> Plane:
    """Project features on their first two principal components, each with a sign of its own."""
    centred = features.double() - features.double().mean(0)
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    total = float(sizes.square().sum()) or 1.0
    points = torch.zeros(len(features), 2, dtype=torch.float64)
    shares = [0.0, 0.0]
    for k in range(min(2, len(sizes))):
        turn = right[k, right[k].abs().argmax()].sign()
        points[:, k] = turn * left[:, k] * len(features) ** 0.5
        shares[k] = float(sizes[k].square()) / total
    return Plane(points, (shares[0], shares[1]))
