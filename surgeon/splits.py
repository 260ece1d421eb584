"""Splits: which rows are fitted on, which are chosen by, and which are only reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.errors import LabelError
from surgeon.groups import Labels

_PARTS = ("fit", "select", "report")
_SELECT = _REPORT = 0.2


@dataclass(frozen=True, eq=False)
class Split:
    """Hold three disjoint parts that together are all rows.

    Args:
        fit: `[n]` int64 positions, ascending: gates, heads, erasure and recalibration see these.
        select: `[m]` int64 positions, ascending: every choice sees these.
        report: `[k]` int64 positions, ascending: read once, after the last choice.
    """

    fit: Tensor
    select: Tensor
    report: Tensor


def split_rows(digests: Sequence[bytes], labels: Labels) -> Split:
    """Divide the rows as the file's `split` column says, else 60 / 20 / 20 within each group.

    Without the column the distinct images of each group are ordered by digest, so that neither a
    seed nor the order of the file moves a row. Equal images share a part, across groups too: an
    image counts for the smallest group it appears in. A group with 1 or 2 distinct images of its
    own goes to the report part.

    Args:
        digests: for each row a hash of the decoded pixels.
        labels: the rows.

    Returns:
        Three parts, none of them empty.

    Raises:
        LabelError: a part is empty, or the file puts equal images into different parts.
    """
    assert len(digests) == len(labels.paths)
    if labels.split is None:
        parts = _parts_by_digest(digests, labels)
        advice = "add rows: a group needs 3 or more different images to be fitted on"
    else:
        parts = list(labels.split)
        _check_duplicates(digests, labels, parts)
        advice = "use fit, select and report (or train, val and test) in the split column"
    empty = [part for part in _PARTS if part not in parts]
    if empty:
        raise LabelError(
            f"{labels.csv}: {' and '.join(empty)} would have no row of {len(parts)}; {advice}"
        )
    return Split(
        *(torch.tensor([row for row, p in enumerate(parts) if p == part]) for part in _PARTS)
    )


def _parts_by_digest(digests: Sequence[bytes], labels: Labels) -> list[str]:
    """Give each row its part: distinct images in the order of their digests, group by group."""
    counts = labels.groups.counts().tolist()
    homes: dict[bytes, tuple[int, int]] = {}
    for digest, group in zip(digests, labels.groups.index.tolist(), strict=True):
        home = (counts[group], group)
        homes[digest] = min(homes.get(digest, home), home)
    members: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    for digest, home in homes.items():
        members[home].append(digest)
    part: dict[bytes, str] = {}
    for images in members.values():
        n = len(images)
        report = n if n < 3 else max(1, round(_REPORT * n))
        select = 0 if n < 3 else max(1, round(_SELECT * n))
        order = ["fit"] * (n - select - report) + ["select"] * select + ["report"] * report
        part.update(zip(sorted(images), order, strict=True))
    return [part[digest] for digest in digests]


def _check_duplicates(digests: Sequence[bytes], labels: Labels, parts: Sequence[str]) -> None:
    """Raise if equal images stand in different parts."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        rows[digest].append(row)
    torn = [same for same in rows.values() if len({parts[row] for row in same}) > 1]
    if torn:
        raise LabelError(
            f"{labels.csv}: {len(torn)} images stand in more than one part of the split column; "
            "give equal images one part",
            [
                "equal images in rows "
                + ", ".join(f"{labels.rows[row]} ({parts[row]})" for row in same)
                for same in torn
            ],
        )
