"""What every discovery shares: rows without bias labels in, pseudo labels out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from surgeon.data import Rows
from surgeon.subject import Subject

Progress = Callable[[Mapping[str, Any]], None]
"""Takes one record per moment: name to number."""


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """A guess of the bias of N rows.

    Args:
        values: `[N]` int64, values 0..B-1.
        names: of the B values.
        confidence: `[N]` float, 0 to 1.
        history: what was looked at, one record each.
    """

    values: Tensor
    names: tuple[str, ...]
    confidence: Tensor
    history: tuple[Mapping[str, Any], ...] = ()


class Discovery(ABC):
    """Guess one bias of labelled rows from targets and images alone.

    A discovery is a frozen dataclass of its settings. It reads no bias label.
    """

    name: ClassVar[str]
    """Registry key."""

    @abstractmethod
    def find(
        self, subject: Subject, rows: Rows, train: Rows, *, progress: Progress | None = None
    ) -> PseudoLabels:
        """Guess the bias of every row.

        Args:
            subject: The frozen network.
            rows: What is labelled.
            train: Those of them that something may be fitted on.
            progress: Called once per record.
        """
