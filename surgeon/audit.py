"""The audit: accuracy by group, the gap each bias makes, and how far the bias can be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgeon.errors import OptionError
from surgeon.findings import Audit, BiasRow, GroupRow, Places, ProbeScore, Span
from surgeon.metrics import (
    balanced_accuracy,
    bootstrap_accuracies,
    calibration_error,
    group_accuracies,
    interval,
    pulled_targets,
    reweighted_accuracy,
    wilson_interval,
    worst_group_accuracy,
)

if TYPE_CHECKING:
    from surgeon.data import Outputs
    from surgeon.groups import Groups
    from surgeon.probes import Prober

__all__ = ["Alignment", "Audit", "BiasRow", "GroupRow", "audit_outputs", "decide_alignment"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which target every bias value pulls toward, decided once on the vanilla model.

    Attributes:
        pulls: For each bias column `[B]` int64, values 0..C-1, -1 where a value pulls nowhere.
        source: For each column "given", "model", or "none" if no value pulls.
    """

    pulls: tuple[Tensor, ...]
    source: tuple[str, ...]


def decide_alignment(
    logits: Tensor, groups: Groups, given: Mapping[str, Mapping[str, str]] | None = None
) -> Alignment:
    """Decide which target every bias value pulls toward, from fit rows of the vanilla model.

    A column that is given is taken as given, and its values that are not named pull nowhere.
    For the others `metrics.pulled_targets` decides.

    Args:
        logits: `[N, C]` float, of the vanilla model.
        groups: The same N rows.
        given: Column to value to target, all by name.

    Raises:
        OptionError: A column, value or target in `given` does not exist.
    """
    given = given or {}
    _check_given(given, groups)
    predicted = logits.argmax(dim=1).cpu()
    pulls, sources = [], []
    for k, column in enumerate(groups.columns):
        num_values = groups.num_values(k)
        if column in given:
            pull = torch.full((num_values,), -1, dtype=torch.int64)
            for value, target in given[column].items():
                pull[groups.value_names[k].index(value)] = groups.target_names.index(target)
        else:
            bias = groups.biases[:, k]
            pull = pulled_targets(predicted, groups.target, bias, groups.num_classes, num_values)
        named = "given" if column in given else "model"
        pulls.append(pull)
        sources.append(named if bool((pull >= 0).any()) else "none")
    return Alignment(tuple(pulls), tuple(sources))


def audit_outputs(
    outputs: Outputs,
    groups: Groups,
    *,
    alignment: Alignment,
    prober: Prober | None,
    head_input: Tensor | None = None,
    mlp: bool = True,
    min_group: int = 10,
    train_counts: Tensor | None = None,
    seed: int = 0,
) -> Audit:
    """Measure one operation's outputs.

    Args:
        outputs: Bottleneck and logits of N rows.
        groups: The same rows.
        alignment: Decided on the vanilla model.
        prober: Reads the leakage; None leaves it out.
        head_input: `[N, D]` float, the bottleneck after a folded erasure; None without one.
        mlp: Whether to run the MLP probes beside the linear ones.
        min_group: Rows a group needs to be eligible as the worst.
        train_counts: `[G]` counts of the groups where the model was trained, None if unknown.
        seed: Of the bootstrap.
    """
    group, num_groups, counts = groups.index, groups.num_groups, groups.counts()
    correct = outputs.logits.argmax(dim=1).cpu() == groups.target
    acc = group_accuracies(correct, group, num_groups)
    drawn = bootstrap_accuracies(correct[None], group, num_groups, seed=seed)[:, 0]
    averages = {name: float(x) for name, x in _averages(acc, counts, train_counts).items()}
    spans: dict[str, Span | None] = {"reweighted_accuracy": None}
    spans |= {n: _percentiles(x) for n, x in _averages(drawn, counts, train_counts).items()}
    rows = _group_rows(outputs.logits, correct, groups)
    eligible = counts >= max(min_group, 1)
    worst = int(acc.where(eligible, math.inf).argmin()) if bool(eligible.any()) else None
    spans["worst_group_accuracy"] = None if worst is None else (rows[worst].low, rows[worst].high)
    places = {"bottleneck": outputs.features, "head_input": head_input, "logits": outputs.logits}
    return Audit(
        n=len(groups),
        average_accuracy=averages["average_accuracy"],
        balanced_accuracy=averages["balanced_accuracy"],
        reweighted_accuracy=averages.get("reweighted_accuracy"),
        worst_group_accuracy=float(worst_group_accuracy(acc, eligible)),
        worst_group=worst,
        intervals=spans,
        groups=rows,
        biases=tuple(
            _bias_row(k, correct, groups, alignment, _leakage(k, places, groups, prober, mlp), seed)
            for k in range(len(groups.columns))
        ),
        correct=correct,
    )


def _check_given(given: Mapping[str, Mapping[str, str]], groups: Groups) -> None:
    faults = []

    def check(what: str, name: str, choices: Sequence[str]) -> None:
        if name not in choices:
            faults.append(f"{what} '{name}' is not among {{{', '.join(choices)}}}")

    for column, pulls in given.items():
        check("bias column", column, groups.columns)
        if column in groups.columns:
            for value, target in pulls.items():
                check(f"value of {column}", value, groups.value_names[groups.columns.index(column)])
                check("target", target, groups.target_names)
    if faults:
        raise OptionError("--aligned: unknown names; choose from those listed", faults)


def _averages(acc: Tensor, counts: Tensor, train_counts: Tensor | None) -> dict[str, Tensor]:
    averages = {
        "average_accuracy": _pooled(acc, counts),
        "balanced_accuracy": balanced_accuracy(acc),
    }
    if train_counts is not None:
        averages["reweighted_accuracy"] = reweighted_accuracy(acc, train_counts)
    return averages


def _group_rows(logits: Tensor, correct: Tensor, groups: Groups) -> tuple[GroupRow, ...]:
    group, counts = groups.index, groups.counts()
    hits = torch.bincount(group[correct], minlength=groups.num_groups)
    low, high = wilson_interval(hits, counts)
    confidence = logits.double().softmax(dim=1).amax(dim=1).cpu()
    rows = []
    for g, n in enumerate(counts.tolist()):
        own = group == g
        rows.append(
            GroupRow(
                *groups.names(g),
                n=n,
                accuracy=float(hits[g]) / n if n else math.nan,
                low=float(low[g]),
                high=float(high[g]),
                calibration_error=calibration_error(confidence[own], correct[own]),
            )
        )
    return tuple(rows)


def _bias_row(
    k: int,
    correct: Tensor,
    groups: Groups,
    alignment: Alignment,
    leakage: Places | None,
    seed: int,
) -> BiasRow:
    num_values = groups.num_values(k)
    num_cells = groups.num_classes * num_values
    cell = groups.cell(k)
    counts = torch.bincount(cell, minlength=num_cells)
    pull = alignment.pulls[k].repeat(groups.num_classes)
    own = torch.arange(groups.num_classes).repeat_interleave(num_values)
    toward = counts * (pull == own)
    away = counts * ((pull >= 0) & (pull != own))
    acc = group_accuracies(correct, cell, num_cells)
    aligned, conflicting = float(_pooled(acc, toward)), float(_pooled(acc, away))
    span = None
    if bool(toward.any()) and bool(away.any()):
        drawn = bootstrap_accuracies(correct[None], cell, num_cells, seed=seed)[:, 0]
        span = _percentiles(_pooled(drawn, toward) - _pooled(drawn, away))
    return BiasRow(
        column=groups.columns[k],
        fitted=k in groups.fitted,
        aligned=aligned,
        conflicting=conflicting,
        gap=aligned - conflicting,
        gap_interval=span,
        chance=1 / num_values,
        n=len(groups),
        leakage=leakage,
    )


def _leakage(
    k: int,
    places: Mapping[str, Tensor | None],
    groups: Groups,
    prober: Prober | None,
    mlp: bool,
) -> Places | None:
    if prober is None:
        return None

    def read(features: Tensor) -> dict[str, ProbeScore | None]:
        bias, sizes = groups.biases[:, k], (groups.num_classes, groups.num_values(k))
        linear = prober.score(features, groups.target, bias, *sizes, "linear")
        if not mlp:
            return {"linear": linear, "mlp": None}
        return {
            "linear": linear,
            "mlp": prober.score(features, groups.target, bias, *sizes, "mlp"),
        }

    return {place: None if x is None else read(x) for place, x in places.items()}


def _pooled(acc: Tensor, counts: Tensor) -> Tensor:
    """Return the accuracy over the rows of groups taken together, NaN if there are none."""
    return (acc.nan_to_num() * counts).sum(dim=-1) / counts.sum()


def _percentiles(draws: Tensor) -> Span:
    low, high = interval(draws)
    return float(low), float(high)
