"""Groups: who is who in a labelled set, one target and K bias values per row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Hold the target and the bias values of N rows.

    A group is one target value with one value of every fitted bias column, numbered row-major over
    (target, fitted bias 1, ... fitted bias K) in the order of the names.

    Args:
        target: `[N]` int64, values 0..C-1.
        biases: `[N, K]` int64, column k with values 0..B_k-1.
        target_names: C names, in the class order of the model.
        columns: K names of bias columns; audited ones last.
        value_names: for each column its B_k names.
        audited: columns that are measured and never fitted.
    """

    target: Tensor
    biases: Tensor
    target_names: tuple[str, ...]
    columns: tuple[str, ...]
    value_names: tuple[tuple[str, ...], ...]
    audited: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        num_fitted = len(self.columns) - len(self.audited)
        assert self.biases.shape == (len(self.target), len(self.columns))
        assert len(self.value_names) == len(self.columns)
        assert self.columns[num_fitted:] == self.audited
        tops = [len(self.target_names), *map(len, self.value_names)]
        for values, top in zip([self.target, *self.biases.T], tops, strict=True):
            assert values.dtype == torch.int64
            assert bool(((values >= 0) & (values < top)).all())

    def __len__(self) -> int:
        return len(self.target)

    @property
    def num_classes(self) -> int:
        """Count the classes C of the model, whether or not rows show them all."""
        return len(self.target_names)

    @property
    def fitted(self) -> tuple[int, ...]:
        """Give the positions of the bias columns that are not audited only."""
        return tuple(range(len(self.columns) - len(self.audited)))

    @cached_property
    def index(self) -> Tensor:
        """Number the group of every row.

        Returns:
            `[N]` int64, values 0..G-1, row-major over target and fitted biases.
        """
        index = self.target.clone()
        for column in self.fitted:
            index = index * self.num_values(column) + self.biases[:, column]
        return index

    @property
    def num_groups(self) -> int:
        """Count the groups G, the empty ones too."""
        total = self.num_classes
        for column in self.fitted:
            total *= self.num_values(column)
        return total

    def num_values(self, column: int) -> int:
        """Count the values B of the bias column at position `column`."""
        return len(self.value_names[column])

    def names(self, group: int) -> tuple[str, dict[str, str]]:
        """Spell out one group.

        Args:
            group: 0..G-1.

        Returns:
            The target's name, and the value's name for each fitted column.
        """
        assert 0 <= group < self.num_groups
        values: dict[str, str] = {}
        for column in reversed(self.fitted):
            group, value = divmod(group, self.num_values(column))
            values[self.columns[column]] = self.value_names[column][value]
        return self.target_names[group], dict(reversed(values.items()))

    def counts(self) -> Tensor:
        """Count the rows of every group.

        Returns:
            `[G]` int64, 0 for an empty group.
        """
        return torch.bincount(self.index, minlength=self.num_groups)

    def weights(self) -> Tensor:
        """Weigh the rows so that all groups that have any count equally.

        Returns:
            `[N]` float64, one over the rows of the group.
        """
        return 1 / self.counts().double()[self.index]

    def cell(self, column: int) -> Tensor:
        """Number the cell of every row in one bias column's own target x bias table.

        Args:
            column: position of the bias column.

        Returns:
            `[N]` int64, target * B + bias.
        """
        return self.target * self.num_values(column) + self.biases[:, column]

    def usual_targets(self, column: int) -> Tensor:
        """Name the target that each value of a bias goes with: a larger share of it has the value.

        Args:
            column: position of the bias column.

        Returns:
            `[B]` int64, values 0..C-1, the first of equals.
        """
        counts = torch.bincount(
            self.cell(column), minlength=self.num_classes * self.num_values(column)
        ).view(self.num_classes, -1)
        return (counts / counts.sum(1, keepdim=True).clamp_min(1)).argmax(0)

    def take(self, rows: Tensor) -> Groups:
        """Select rows; names and numbering stay.

        Args:
            rows: `[n]` int64 positions.
        """
        return Groups(
            self.target[rows],
            self.biases[rows],
            self.target_names,
            self.columns,
            self.value_names,
            self.audited,
        )


@dataclass(frozen=True)
class Labels:
    """Hold a label file that has been checked, images not yet decoded.

    Args:
        csv: the file.
        paths: N image files, in the order of the file.
        groups: targets and biases of the N rows.
        split: for each row `fit`, `select` or `report`; None without a `split` column.
        rows: for each row its line in the file, the header being row 1.
        notes: remarks the user should see; none of them is an error.
    """

    csv: Path
    paths: tuple[Path, ...]
    groups: Groups
    split: tuple[str, ...] | None
    rows: tuple[int, ...]
    notes: tuple[str, ...]
