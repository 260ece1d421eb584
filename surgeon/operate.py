"""One operation from labelled data to a judged result: what every command calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.errors import LabelError
from surgeon.export import base_record
from surgeon.gradcam import find_feature_map
from surgeon.measure import Controlled, Measures, Ruler, controlled
from surgeon.methods import FFW, Method
from surgeon.methods.base import Progress, device_changes, select_accuracy
from surgeon.methods.controls import Magnitude, Random
from surgeon.methods.training import Training
from surgeon.record import PARTS, Report
from surgeon.remarks import (
    augmented,
    bound_targets,
    cost,
    halved,
    no_mask,
    partly_erased,
    unopposed_values,
)
from surgeon.subject import Subject
from surgeon.surgery import layer_rows, sparsity
from surgeon.verdict import Verdict
from surgeon.views import view

Announce = Callable[[str], None]
"""Takes one line about the stage that begins."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an operation leaves: the edit and its measurements."""

    edit: Edit
    report: Report
    method: Method
    """The method as it was chosen (a sweep may have set a field)."""
    controlled: Controlled
    """The audits that the report was made of."""
    ruler: Ruler
    """What took them."""


def operate(
    subject: Subject,
    data: Data,
    method: Method,
    *,
    measures: Measures | None = None,
    sweep: Mapping[str, Sequence[float]] | None = None,
    explain: bool = False,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Outcome:
    """Fit a method and measure it beside every control on the report rows.

    Args:
        subject: The frozen network.
        data: Labelled rows in three parts.
        method: What to fit.
        measures: How to measure.
        sweep: A field of the method and the values to try; select rows choose.
        explain: Draw where the network looks in the images of the report.
        progress: Takes one record per epoch.
        announce: Takes one line per stage.

    Returns:
        The edit and the report; nothing is written.

    Raises:
        LabelError: No group has enough report rows for a worst group.
        OptionError: `explain`, and captum is not installed.
        IncompatibleError: `explain`, and the network has no feature map.
    """
    measures, say = measures or Measures(), announce or (lambda _: None)
    start = time.perf_counter()
    check_groups(data, measures.min_group)
    # Now, so that what could not be drawn in the end is refused before anything is fitted.
    where = find_feature_map(subject) if explain else None
    ruler = Ruler(subject, data, measures)
    say(f"fitting {method.name} on {len(data.fit)} rows, choosing on {len(data.select)}")
    began = time.perf_counter()
    if sweep:
        fitted, tried = _sweep(ruler, method, sweep, progress, say)
    else:
        fitted, tried = _fit(ruler, method, progress), []
    edit = fitted.edit
    seconds = time.perf_counter() - began
    say(f"measuring on {len(data.report)} report rows")
    found = controlled(ruler, edit, seconds)
    verdict = ruler.verdict(found.vanilla, found.edited)
    remarks = _remarks(fitted, data, found, verdict)
    report = Report(
        base=base_record(subject),
        data=data_record(data),
        counts=group_counts(data),
        config=config_of(fitted.method),
        operations=found.rows,
        verdict=verdict,
        layers=tuple(layer_rows(subject, edit)),
        history=fitted.history,
        seconds=time.perf_counter() - start,
        notes=(*subject.notes, *data.labels.notes, *found.notes, *remarks),
        sweep=tried,
        views=view(subject, data, edit, found.vanilla.correct, found.edited.correct, where=where),
    )
    return Outcome(edit, report, fitted.method, found, ruler)


def data_record(data: Data) -> dict[str, int]:
    """Return the rows in all, and of each part, as `report.json` names them."""
    parts = {name: len(getattr(data, name)) for name in PARTS}
    return {"rows": sum(parts.values()), **parts}


def group_counts(data: Data) -> list[dict[str, int]]:
    """Return the rows of each part, for each group in the order of the report's tables."""
    parts = [getattr(data, name).groups for name in PARTS]
    # A benchmark groups report rows by what is only watched, too.
    counts = [replace(groups, audited=data.report.groups.audited).counts() for groups in parts]
    return [dict(zip(PARTS, own, strict=True)) for own in torch.stack(counts, 1).tolist()]


def config_of(method: Method) -> dict[str, Any]:
    """Return a method's settings as plain JSON values, its recipe resolved."""
    config = {field.name: getattr(method, field.name) for field in fields(method)}  # pyright: ignore
    config = {"method": method.name, **{k: v for k, v in config.items() if k != "like"}}
    if isinstance(method, FFW | Training):
        config["settings"] = asdict(method.settings())
    return config


def _remarks(fitted: _Fitted, data: Data, found: Controlled, verdict: Verdict) -> tuple[str, ...]:
    return (
        *bound_targets(data.fit.groups),
        *unopposed_values(data.fit.groups),
        *augmented(fitted.history),
        *halved(fitted.history),
        *(no_mask(fitted.edit) if isinstance(fitted.method, FFW) else ()),
        *partly_erased(fitted.edit, data.fit.groups),
        *cost(found.vanilla, found.edited, verdict),
    )


def check_groups(data: Data, min_group: int) -> None:
    """Refuse data without a group that could be the worst.

    Raises:
        LabelError: No group has enough report rows.
    """
    counts = data.report.groups.counts()
    if not bool((counts >= min_group).any()):
        raise LabelError(
            f"{data.labels.csv}: the largest group has {int(counts.max())} report rows, expected "
            f"at least {min_group} for a worst group; label more images or lower --min-group"
        )


@dataclass(frozen=True, eq=False)
class _Fitted:
    """One fitted candidate."""

    method: Method
    edit: Edit
    history: Sequence[Mapping[str, Any]]


def _fit(ruler: Ruler, method: Method, progress: Progress | None) -> _Fitted:
    history: list[Mapping[str, Any]] = []

    def record(entry: Mapping[str, Any]) -> None:
        history.append(entry)
        if progress:
            progress(entry)

    return _Fitted(method, method.fit(ruler.subject, ruler.data, progress=record), history)


def _sweep(
    ruler: Ruler,
    method: Method,
    sweep: Mapping[str, Sequence[float]],
    progress: Progress | None,
    say: Announce,
) -> tuple[_Fitted, list[dict[str, Any]]]:
    """Fit one edit per value and choose by balanced accuracy on select rows; ties: the first."""
    tried: list[dict[str, Any]] = []
    fitted: list[_Fitted] = []
    scores: list[float] = []
    for name, value in ((name, value) for name, values in sweep.items() for value in values):
        say(f"{name} {value:g}")
        candidate = _fit(ruler, replace(method, **{name: value}), progress)  # pyright: ignore
        seen = ruler.audit(candidate.edit, rows=ruler.data.select)
        scores.append(seen.balanced_accuracy)
        fitted.append(candidate)
        sparse = asdict(sparsity(ruler.subject, candidate.edit))
        tried.append(
            {
                name: value,
                "masked": candidate.edit.masked,
                # As the search saw it in its last epoch, fit rows.
                "bias_term": candidate.history[-1]["bias_term"],
                "sparsity": sparse,
                "select": seen.to_json(),
                "controls": _control_scores(ruler, candidate.edit),
            }
        )
    return fitted[scores.index(max(scores))], tried


def _control_scores(ruler: Ruler, edit: Edit) -> dict[str, float]:
    """Return the balanced accuracy on select rows of other masks that are as sparse, by name."""
    if not edit.masked:
        return {}
    subject, data, scores = ruler.subject, ruler.data, {}
    for control in (Magnitude, Random):
        method = control(like=edit, recalibrate=bool(edit.buffers), seed=ruler.measures.seed)
        changes = device_changes(subject, method.fit(subject, data))
        outputs = extract(subject, data.select, overrides=changes)
        scores[control.name] = select_accuracy(outputs.logits, data.select.groups)
    return scores
