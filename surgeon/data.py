"""Data: labelled images of one network in three parts, and what the network makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgeon.errors import OptionError
from surgeon.groups import Groups, Labels
from surgeon.images import Images, read_images
from surgeon.labels import read_labels
from surgeon.splits import split_rows

if TYPE_CHECKING:
    from surgeon.subject import Subject


@dataclass(frozen=True, eq=False)
class Rows:
    """Serve one part of the data: its images with their groups.

    Positions that are passed in and handed out count within the part, 0..len-1.

    Args:
        images: all images.
        groups: targets and biases of these rows only.
        index: `[n]` int64, for each row its position among all images.
    """

    images: Images
    groups: Groups
    index: Tensor

    def __post_init__(self) -> None:
        assert len(self.groups) == len(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, rows: Tensor) -> Tensor:
        """Give the images of some rows.

        Args:
            rows: `[m]` int64 positions.

        Returns:
            `[m, 3, H, W]` float32 on the images' device.
        """
        return self.images.batch(self.index[rows])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all rows in order.

        Args:
            size: rows per batch at most; batches differ by one row at most.

        Yields:
            Positions `[m]` and images `[m, 3, H, W]`.
        """
        assert size >= 1
        rows = torch.arange(len(self))
        for chunk in rows.tensor_split(max(1, -(-len(self) // size))):
            yield chunk, self.batch(chunk)

    def balanced_order(self, generator: torch.Generator, balance: str = "groups") -> Tensor:
        """Draw the order of rows for one epoch.

        Args:
            generator: on the CPU.
            balance: `groups` takes every non-empty group equally often, and every row of a group
                equally often, both within one; `none` takes every row once.

        Returns:
            `[n]` int64 positions, shuffled.

        Raises:
            OptionError: `balance` is unknown.
        """
        if balance == "none":
            return torch.randperm(len(self), generator=generator)
        if balance != "groups":
            raise OptionError(f"balance is '{balance}', expected groups or none")
        index = self.groups.index
        filled = index.unique()
        base, rest = divmod(len(self), len(filled))
        luckier = torch.randperm(len(filled), generator=generator) < rest
        drawn: list[Tensor] = []
        for group, lucky in zip(filled, luckier.tolist(), strict=True):
            members = (index == group).nonzero().flatten()
            times, remainder = divmod(base + lucky, len(members))
            some = torch.randperm(len(members), generator=generator)[:remainder]
            drawn += [members.repeat(times), members[some]]
        order = torch.cat(drawn)
        return order[torch.randperm(len(order), generator=generator)]

    def weighted_order(self, generator: torch.Generator, weights: Tensor) -> Tensor:
        """Draw the order of rows for one epoch, each as often as it weighs.

        Args:
            generator: on the CPU.
            weights: `[n]`, none negative; only their proportions count.

        Returns:
            `[n]` int64 positions, shuffled; a row of weight w, mean 1, stands there w times,
            rounded up or down by chance (systematic sampling).
        """
        assert len(weights) == len(self)
        ends = weights.double().cumsum(0) * (len(self) / weights.double().sum())
        start = torch.rand((), generator=generator, dtype=torch.float64)
        passed = (ends + start).floor().long()
        passed[-1] = len(self)  # whatever the rounding
        order = torch.arange(len(self)).repeat_interleave(passed.diff(prepend=passed.new_zeros(1)))
        return order[torch.randperm(len(order), generator=generator)]

    def epoch(
        self, size: int, generator: torch.Generator, balance: str = "groups"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through one epoch in a drawn order.

        Args:
            size: rows per batch, as for `in_batches`.
            generator: on the CPU.
            balance: as for `balanced_order`.

        Yields:
            Positions `[m]` and images `[m, 3, H, W]`.
        """
        yield from self.in_batches(self.balanced_order(generator, balance), size)

    def in_batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through rows in an order.

        No batch has a single row, which BatchNorm could not normalise, unless there is only one.

        Args:
            order: `[n]` int64 positions.
            size: rows per batch; batches differ by one row at most.

        Yields:
            Positions `[m]` and images `[m, 3, H, W]`.
        """
        assert size >= 1
        num_batches = max(1, min(-(-len(order) // size), len(order) // 2))
        for rows in order.tensor_split(num_batches):
            yield rows, self.batch(rows)


@dataclass(frozen=True, eq=False)
class Data:
    """Hold the three parts of a labelled set.

    Args:
        fit: what edits are fitted on.
        select: what every choice is made by.
        report: what is read once, after the last choice.
        labels: the file they come from.
    """

    fit: Rows
    select: Rows
    report: Rows
    labels: Labels


@dataclass(frozen=True, eq=False)
class Outputs:
    """Hold what a network makes of N rows.

    Args:
        features: `[N, D]` float32 on the CPU, the bottleneck.
        logits: `[N, C]` float32 on the CPU.
    """

    features: Tensor
    logits: Tensor


@torch.no_grad()
def extract(
    subject: Subject,
    rows: Rows,
    *,
    overrides: Mapping[str, Tensor] | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
) -> Outputs:
    """Run the network over rows, in order.

    Args:
        subject: the network.
        rows: N rows.
        overrides: tensors by name that count instead of the network's own.
        change: takes each batch of images and returns what the network sees instead.
        batch_size: rows per forward pass.
    """
    features: list[Tensor] = []
    logits: list[Tensor] = []
    for _, x in rows.batches(batch_size):
        feature, logit = subject.forward(change(x) if change else x, overrides)
        features.append(feature.float().cpu())
        logits.append(logit.float().cpu())
    return Outputs(torch.cat(features), torch.cat(logits))


def read_rows(
    subject: Subject,
    csv: str | Path,
    *,
    images: str | Path | None = None,
    target_col: str = "target",
    bias_cols: Sequence[str] = ("bias",),
    audit_cols: Sequence[str] = (),
    sixteen_bit: str | None = None,
    workers: int | None = None,
) -> tuple[Rows, Labels]:
    """Read labels and decode the images as the network wants them, undivided.

    Args:
        subject: the network, for its classes, preprocessing and device.
        csv: labels, as for `read_labels`.
        images: folder that image paths start from, instead of the file's own.
        target_col: column of the target.
        bias_cols: columns of the biases to remove; may be empty.
        audit_cols: columns of biases to measure only.
        sixteen_bit: what to do with 16-bit grey images, as for `open_image`.
        workers: threads that decode.

    Raises:
        LabelError: the file or its images cannot be used; every fault is listed.
        OptionError: an argument cannot be honoured.
    """
    labels = read_labels(
        csv,
        num_classes=subject.num_classes,
        label_names=subject.label_names,
        target_col=target_col,
        bias_cols=bias_cols,
        audit_cols=audit_cols,
        images=images,
    )
    read = read_images(
        labels, subject.preprocessing, subject.device, sixteen_bit=sixteen_bit, workers=workers
    )
    return Rows(read, labels.groups, torch.arange(len(labels.groups))), labels


def read_data(
    subject: Subject,
    csv: str | Path,
    *,
    images: str | Path | None = None,
    target_col: str = "target",
    bias_cols: Sequence[str] = ("bias",),
    audit_cols: Sequence[str] = (),
    sixteen_bit: str | None = None,
    workers: int | None = None,
) -> Data:
    """Read rows as `read_rows` does, with the same arguments, and divide them in three parts.

    Raises:
        LabelError: the file or its images cannot be used, or a part would be empty.
        OptionError: an argument cannot be honoured.
    """
    rows, labels = read_rows(
        subject,
        csv,
        images=images,
        target_col=target_col,
        bias_cols=bias_cols,
        audit_cols=audit_cols,
        sixteen_bit=sixteen_bit,
        workers=workers,
    )
    split = split_rows(rows.images.digests, labels)
    fit, select, report = (
        Rows(rows.images, labels.groups.take(part), part)
        for part in (split.fit, split.select, split.report)
    )
    return Data(fit, select, report, labels)
