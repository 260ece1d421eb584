"""What is written down of one operation: the rows of the table, the verdict, the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from surgeon.surgery import LayerRow, Sparsity
from surgeon.verdict import Verdict
from surgeon.views import Views

VERSION = 1
PARTS = ("fit", "select", "report")


@dataclass(frozen=True)
class Operation:
    """One row of the table."""

    name: str
    """Registry key, `+erase` appended where the erasure was folded."""
    audit: Mapping[str, Any]
    """An `Audit` as JSON; for `random` the mean over seeds."""
    sparsity: Sparsity
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the row as `report.json` has it."""
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """Everything `report.json` holds."""

    base: Mapping[str, Any]
    """`sha256`, `architecture`, `num_classes`."""
    data: Mapping[str, int]
    """Rows in all, and in each part."""
    counts: Sequence[Mapping[str, int]]
    """Rows of each part, for each group."""
    config: Mapping[str, Any]
    """The method's settings, verbatim."""
    operations: tuple[Operation, ...]
    """Vanilla first, the exported one last."""
    verdict: Verdict
    layers: tuple[LayerRow, ...]
    history: Sequence[Mapping[str, Any]]
    """One record per epoch of the exported operation's search."""
    seconds: float
    notes: tuple[str, ...] = ()
    """Remarks the user has seen."""
    sweep: Sequence[Mapping[str, Any]] = ()
    """One record per setting tried, measured on select rows."""
    views: Views | None = None
    """Images and features of some report rows."""

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "version": VERSION,
            "base": dict(self.base),
            "data": dict(self.data),
            "counts": [dict(group) for group in self.counts],
            "config": dict(self.config),
            "operations": [operation.to_json() for operation in self.operations],
            "verdict": self.verdict.to_json(),
            "layers": [asdict(layer) for layer in self.layers],
            "history": [dict(record) for record in self.history],
            "seconds": self.seconds,
            "notes": list(self.notes),
            **(self.views.to_json() if self.views else {}),
        }
