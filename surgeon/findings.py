"""What an audit finds: frozen tables that know their place in report.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Span = tuple[float, float]

# The averages that every table shows, and the places where leakage is read, in their order.
AVERAGES = ("worst_group_accuracy", "balanced_accuracy", "average_accuracy")
PLACES = ("bottleneck", "head_input", "logits")
# Below this many report rows leakage is shown and claims nothing.
CLAIM_ROWS = 4000


@dataclass(frozen=True)
class ProbeScore:
    """What one probe reads.

    Attributes:
        accuracy: Mean over (target, bias) cells of the bias accuracy, fraction in [0, 1]; NaN
            when nothing can be read: features not finite, one bias value only, under 10 rows.
        low: Lower end of its 95 % interval.
        high: Upper end.
        chance: 1 / B.
        n: Rows probed.
        trusted: Whether the same probe reads a planted signal on these rows at >= 95 %.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    n: int
    trusted: bool


Places = Mapping[str, Mapping[str, ProbeScore | None] | None]


@dataclass(frozen=True)
class GroupRow:
    """One group's accuracy with its Wilson interval; NaN where the group is empty.

    Attributes:
        target: Name of the target.
        bias: Name of the value for each fitted column.
        n: Rows.
        accuracy: Fraction in [0, 1].
        low: Lower end of the 95 % interval.
        high: Upper end.
        calibration_error: Fraction in [0, 1], NaN below 100 rows.
    """

    target: str
    bias: Mapping[str, str]
    n: int
    accuracy: float
    low: float
    high: float
    calibration_error: float

    def to_json(self) -> dict[str, object]:
        """Return the row as report.json holds it, NaN as None."""
        return {
            "target": self.target,
            "bias": dict(self.bias),
            "n": self.n,
            "accuracy": _number(self.accuracy),
            "low": _number(self.low),
            "high": _number(self.high),
            "calibration_error": _number(self.calibration_error),
        }


@dataclass(frozen=True)
class BiasRow:
    """What one bias does to the accuracy, and where it can be read.

    Attributes:
        column: Name of the bias column.
        fitted: False for a column that is measured only.
        aligned: Accuracy over the rows whose value pulls toward their own target; NaN if none.
        conflicting: Accuracy over the rows whose value pulls toward another target; NaN if none.
        gap: Aligned less conflicting.
        gap_interval: Its 95 % interval, None where there is no gap.
        chance: 1 / B.
        n: Rows probed.
        leakage: Place ("bottleneck", "head_input", "logits"; None if there is no such place) to
            kind ("linear", "mlp"; None if not run) to score; None if nothing was probed.
    """

    column: str
    fitted: bool
    aligned: float
    conflicting: float
    gap: float
    gap_interval: Span | None
    chance: float
    n: int
    leakage: Places | None

    @property
    def untrusted(self) -> tuple[str, ...]:
        """The figures, as "place/kind", of probes that missed a planted signal."""
        places = [(place, kinds) for place, kinds in (self.leakage or {}).items() if kinds]
        return tuple(
            f"{place}/{kind}"
            for place, kinds in places
            for kind, score in kinds.items()
            if score is not None and not score.trusted
        )

    def to_json(self) -> dict[str, object]:
        """Return the row as report.json holds it, NaN as None."""
        return {
            "aligned": _number(self.aligned),
            "conflicting": _number(self.conflicting),
            "gap": _number(self.gap),
            "gap_interval": _span(self.gap_interval),
            "chance": self.chance,
            "n": self.n,
            "leakage": _nested(self.leakage, lambda score: _number(score.accuracy)),
            "leakage_intervals": _nested(
                self.leakage, lambda score: _span((score.low, score.high))
            ),
            "untrusted": list(self.untrusted),
        }


@dataclass(frozen=True, eq=False)
class Audit:
    """What an operation's outputs are worth on one set of rows.

    Attributes:
        n: Rows.
        average_accuracy: Over rows.
        balanced_accuracy: Mean over the groups that have rows.
        reweighted_accuracy: Groups weighted by their training counts, None without them.
        worst_group_accuracy: Lowest among the groups with enough rows, NaN if there is none.
        worst_group: Position of that group in `groups`, None if there is none.
        intervals: 95 % interval of each of the four, by name; the worst group's is Wilson's for
            that group, the others are bootstrapped; None where the figure is.
        groups: G rows in group order, empty groups included.
        biases: A row for each bias column, audited ones last.
        correct: `[N]` bool, True where the prediction is the target; not in the JSON.
    """

    n: int
    average_accuracy: float
    balanced_accuracy: float
    reweighted_accuracy: float | None
    worst_group_accuracy: float
    worst_group: int | None
    intervals: Mapping[str, Span | None]
    groups: tuple[GroupRow, ...]
    biases: tuple[BiasRow, ...]
    correct: Tensor

    @property
    def gap_intervals(self) -> tuple[Span | None, ...]:
        """The gap's interval for each fitted column, as the verdict takes them."""
        return tuple(row.gap_interval for row in self.biases if row.fitted)

    @property
    def logit_leaks(self) -> tuple[tuple[float, float, float], ...]:
        """Low, high and chance of each probe of the logits, as the verdict takes them."""
        places = [row.leakage["logits"] for row in self.biases if row.fitted and row.leakage]
        scores = [score for kinds in places for score in (kinds or {}).values()]
        return tuple((s.low, s.high, s.chance) for s in scores if s is not None)

    def to_json(self) -> dict[str, object]:
        """Return the audit as report.json holds it: fractions, NaN as None."""
        worst = None if self.worst_group is None else self.groups[self.worst_group]
        return {
            "n": self.n,
            "average_accuracy": _number(self.average_accuracy),
            "balanced_accuracy": _number(self.balanced_accuracy),
            "reweighted_accuracy": _number(self.reweighted_accuracy),
            "worst_group_accuracy": _number(self.worst_group_accuracy),
            "worst_group": worst and {"target": worst.target, "bias": dict(worst.bias)},
            "intervals": {name: _span(span) for name, span in self.intervals.items()},
            "groups": [row.to_json() for row in self.groups],
            "biases": {row.column: row.to_json() for row in self.biases},
        }


def _number(x: float | None) -> float | None:
    return None if x is None or math.isnan(x) else x


def _span(span: Span | None) -> list[float] | None:
    return None if span is None or math.isnan(span[0]) else list(span)


def _nested(places: Places | None, figure: Callable[[ProbeScore], object]) -> object:
    if places is None:
        return None

    def figures(kinds: Mapping[str, ProbeScore | None]) -> dict[str, object]:
        return {kind: None if score is None else figure(score) for kind, score in kinds.items()}

    return {place: None if kinds is None else figures(kinds) for place, kinds in places.items()}
