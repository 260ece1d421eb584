"""One operation from labelled data to a judged result: what every command calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from typing import Any

from torch import Tensor

from surgeon.audit import Alignment, Audit, audit_outputs, decide_alignment
from surgeon.data import Data, Rows, extract
from surgeon.edit import Edit
from surgeon.errors import LabelError
from surgeon.export import base_record
from surgeon.methods import DFR, FFW, Finetune, Leace, Magnitude, Method, Random
from surgeon.methods.base import Progress, device_changes, select_accuracy, with_erasure
from surgeon.probes import Prober
from surgeon.record import Operation, Report
from surgeon.subject import Subject
from surgeon.surgery import Sparsity, layer_rows, sparsity
from surgeon.verdict import judge

_RANDOM_SEEDS = 5
_NO_MASK = Sparsity(None, None, None)

Announce = Callable[[str], None]
"""Takes one line about the stage that begins."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How results are measured; the same for every row of a table."""

    aligned: Mapping[str, Mapping[str, str]] | None = None
    """Column to bias value to the target it pulls toward, by name; default: from the model."""
    min_group: int = 10
    """Report rows a group needs to be eligible as the worst."""
    train_counts: Tensor | None = None
    """`[G]` training counts of the groups, for the reweighted average."""
    with_finetune: bool = False
    """Add the row of plain fine-tuning."""
    mlp: bool = True
    """Run the MLP probes."""
    seed: int = 0
    """Of probes, bootstrap and controls."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an operation leaves: the edit and its measurements."""

    edit: Edit
    report: Report
    method: Method
    """The method as it was chosen (a sweep may have set a field)."""


class _Ruler:
    """Measures edits of one subject on the report rows, each feature set probed once."""

    def __init__(self, subject: Subject, data: Data, measures: Measures) -> None:
        self.subject, self.data, self.measures = subject, data, measures
        self.prober = Prober(seed=measures.seed)
        self.alignment: Alignment = decide_alignment(
            extract(subject, data.fit).logits, data.fit.groups, measures.aligned
        )

    def audit(
        self, edit: Edit | None = None, *, mlp: bool = False, rows: Rows | None = None
    ) -> Audit:
        """Audit the subject, edited or as it is, on the report rows unless others are given."""
        rows = rows or self.data.report
        changes = device_changes(self.subject, edit) if edit else None
        outputs = extract(self.subject, rows, overrides=changes)
        erased = edit.erasure(outputs.features) if edit and edit.erasure else outputs.features
        return audit_outputs(
            outputs,
            rows.groups,
            alignment=self.alignment,
            prober=self.prober,
            head_input=erased if edit else None,
            mlp=mlp and self.measures.mlp,
            min_group=self.measures.min_group,
            train_counts=self.measures.train_counts,
            seed=self.measures.seed,
        )

    def row(self, name: str, edit: Edit, seconds: float, *, mlp: bool = False) -> Operation:
        """Measure one edit as a row of the table."""
        audit = self.audit(edit, mlp=mlp)
        return Operation(name, audit.to_json(), sparsity(self.subject, edit), seconds)

    def mean_row(self, name: str, edits: Sequence[Edit], seconds: float) -> Operation:
        """Measure several edits as one row of means."""
        rows = [self.row(name, edit, seconds) for edit in edits]
        audit = _mean([row.audit for row in rows])
        # The worst group may be another one in each draw; the mean of the figure stands.
        return replace(rows[0], audit={**audit, "worst_group": None})


def audit(
    subject: Subject, data: Data, *, edit: Edit | None = None, measures: Measures | None = None
) -> Audit:
    """Audit a network on the report rows, as it is or with an edit carried out.

    Which target a bias value pulls toward is decided on the fit rows of the network as it is.

    Args:
        subject: The network.
        data: Labelled rows.
        edit: Carried out first, if given.
        measures: How to measure.
    """
    return _Ruler(subject, data, measures or Measures()).audit(edit, mlp=True)


def operate(
    subject: Subject,
    data: Data,
    method: Method,
    *,
    measures: Measures | None = None,
    sweep: Mapping[str, Sequence[float]] | None = None,
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
        progress: Takes one record per epoch.
        announce: Takes one line per stage.

    Returns:
        The edit and the report; nothing is written.

    Raises:
        LabelError: No group has enough report rows for a worst group.
    """
    measures, say = measures or Measures(), announce or (lambda _: None)
    start = time.perf_counter()
    _check_groups(data, measures.min_group)
    ruler = _Ruler(subject, data, measures)
    say(f"fitting {method.name} on {len(data.fit)} rows, choosing on {len(data.select)}")
    began = time.perf_counter()
    if sweep:
        fitted, tried = _sweep(ruler, method, sweep, progress, say)
    else:
        fitted, tried = _fit(ruler, method, progress), []
    edit = fitted.edit
    seconds = time.perf_counter() - began
    say(f"measuring on {len(data.report)} report rows")
    rows, vanilla, edited = _table(ruler, edit, seconds, record_finetune=measures.with_finetune)
    verdict = judge(
        vanilla.correct,
        edited.correct,
        data.report.groups.index,
        data.report.groups.num_groups,
        min_group=measures.min_group,
        gap_intervals=vanilla.gap_intervals,
        leaks=vanilla.logit_leaks,
        aligned_by=dict(zip(data.report.groups.columns, ruler.alignment.source, strict=True)),
        seed=measures.seed,
    )
    report = Report(
        base=base_record(subject),
        data={
            "rows": len(data.fit) + len(data.select) + len(data.report),
            "fit": len(data.fit),
            "select": len(data.select),
            "report": len(data.report),
        },
        config=config_of(fitted.method),
        operations=tuple(rows),
        verdict=verdict,
        layers=tuple(layer_rows(subject, edit)),
        history=fitted.history,
        seconds=time.perf_counter() - start,
        notes=(*subject.notes, *data.labels.notes),
        sweep=tried,
    )
    return Outcome(edit, report, fitted.method)


def measure(
    subject: Subject, data: Data, edits: Mapping[str, Edit], measures: Measures | None = None
) -> list[Operation]:
    """Measure finished edits on the report rows, one row of a table each.

    Args:
        subject: The base of all of them.
        data: Labelled rows.
        edits: Row name to edit.
        measures: How to measure; MLP probes are run as it says.

    Returns:
        The rows in the order given; their seconds are not known and zero.
    """
    ruler = _Ruler(subject, data, measures or Measures())
    return [ruler.row(name, edit, 0.0, mlp=True) for name, edit in edits.items()]


def config_of(method: Method) -> dict[str, Any]:
    """Return a method's settings as plain JSON values, its recipe resolved."""
    config = {field.name: getattr(method, field.name) for field in fields(method)}  # pyright: ignore
    config = {"method": method.name, **{k: v for k, v in config.items() if k != "like"}}
    if isinstance(method, FFW):
        config["settings"] = asdict(method.settings())
    return config


def _check_groups(data: Data, min_group: int) -> None:
    counts = data.report.groups.counts()
    if not bool((counts >= min_group).any()):
        raise LabelError(
            f"{data.labels.csv}: the largest group has {int(counts.max())} report rows, expected "
            f"at least {min_group} for a worst group; label more images or lower --min-group"
        )


def _table(
    ruler: _Ruler, edit: Edit, seconds: float, *, record_finetune: bool
) -> tuple[list[Operation], Audit, Audit]:
    """Measure vanilla, the baselines, the controls and the operation, in the order shown."""
    subject, data, seed = ruler.subject, ruler.data, ruler.measures.seed
    vanilla, edited = ruler.audit(mlp=True), ruler.audit(edit, mlp=True)
    rows = [Operation("vanilla", vanilla.to_json(), _NO_MASK, 0.0)]
    baselines: list[Method] = [Leace(), DFR()]
    if record_finetune:
        baselines.append(Finetune(seed=seed))
    for method in baselines:
        if method.name != edit.method:
            rows.append(_fitted_row(ruler, method))
    if edit.masks or edit.units:
        settled = bool(edit.buffers)
        controls = {
            "random": [
                Random(like=edit, recalibrate=settled, seed=s) for s in range(_RANDOM_SEEDS)
            ],
            "magnitude": [Magnitude(like=edit, recalibrate=settled, seed=seed)],
        }
        for name, methods in controls.items():
            began = time.perf_counter()
            edits = [method.fit(subject, data) for method in methods]
            took = (time.perf_counter() - began) / len(edits)
            rows.append(ruler.mean_row(name, edits, took))
            erased = [with_erasure(subject, data, e) for e in edits]
            rows.append(ruler.mean_row(f"{name}+erase", erased, took))
    exported = Operation(_row_name(edit), edited.to_json(), sparsity(subject, edit), seconds)
    if edit.masks or edit.units:
        other = edit.without("erasure") if edit.erasure else with_erasure(subject, data, edit)
        rows.append(ruler.row(_row_name(other), other, seconds, mlp=True))
    return [*rows, exported], vanilla, edited


def _row_name(edit: Edit) -> str:
    masked = bool(edit.masks or edit.units)
    return f"{edit.method}+erase" if masked and edit.erasure else edit.method


def _fitted_row(ruler: _Ruler, method: Method) -> Operation:
    began = time.perf_counter()
    edit = method.fit(ruler.subject, ruler.data)
    return ruler.row(method.name, edit, time.perf_counter() - began)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """One fitted candidate."""

    method: Method
    edit: Edit
    history: Sequence[Mapping[str, Any]]


def _fit(ruler: _Ruler, method: Method, progress: Progress | None) -> _Fitted:
    history: list[Mapping[str, Any]] = []

    def record(entry: Mapping[str, Any]) -> None:
        history.append(entry)
        if progress:
            progress(entry)

    return _Fitted(method, method.fit(ruler.subject, ruler.data, progress=record), history)


def _sweep(
    ruler: _Ruler,
    method: Method,
    sweep: Mapping[str, Sequence[float]],
    progress: Progress | None,
    say: Announce,
) -> tuple[_Fitted, list[dict[str, Any]]]:
    """Fit one edit per value and choose by balanced accuracy on select rows; ties: the first."""
    subject, select = ruler.subject, ruler.data.select
    tried: list[dict[str, Any]] = []
    fitted: list[_Fitted] = []
    scores: list[float] = []
    for name, value in ((name, value) for name, values in sweep.items() for value in values):
        say(f"{name} {value:g}")
        candidate = _fit(ruler, replace(method, **{name: value}), progress)  # pyright: ignore
        edit = candidate.edit
        outputs = extract(subject, select, overrides=device_changes(subject, edit))
        scores.append(select_accuracy(outputs.logits, select.groups))
        fitted.append(candidate)
        seen = ruler.audit(edit, rows=select).to_json()
        tried.append({name: value, "sparsity": asdict(sparsity(subject, edit)), "select": seen})
    return fitted[scores.index(max(scores))], tried


def _mean(documents: Sequence[Any]) -> Any:
    """Average equal JSON documents number by number; a number that is sometimes null is null."""
    first = documents[0]
    if isinstance(first, Mapping):
        return {key: _mean([document[key] for document in documents]) for key in first}
    if isinstance(first, list):
        if any(len(document) != len(first) for document in documents):
            return sorted({item for document in documents for item in document})
        return [_mean(list(items)) for items in zip(*documents, strict=True)]
    if any(document is None for document in documents):
        return None
    if isinstance(first, float):
        return fmean(documents)
    return first


__all__ = ["Announce", "Measures", "Outcome", "audit", "config_of", "measure", "operate"]
