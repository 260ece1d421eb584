"""How results are measured: the same rows, probes and controls for every operation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from torch import Tensor

from surgeon.audit import Alignment, Audit, audit_outputs, decide_alignment
from surgeon.data import Data, Rows, extract
from surgeon.edit import Edit
from surgeon.methods import DFR, Finetune, Leace, Magnitude, Method, Random
from surgeon.methods.base import device_changes, with_erasure
from surgeon.probes import Prober
from surgeon.record import Operation
from surgeon.subject import Subject
from surgeon.surgery import Sparsity, sparsity
from surgeon.verdict import Verdict, judge

_RANDOM_SEEDS = 5
_NO_MASK = Sparsity(None, None, None)


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
    finetune_epochs: int | None = None
    """Epochs of that row at most; default: its own."""
    mlp: bool = True
    """Run the MLP probes."""
    mlp_every_row: bool = False
    """Run them for baselines and controls too, draws of random masks left out."""
    brief: bool = False
    """Measure the operation beside the vanilla network and last-layer retraining alone."""
    seed: int = 0
    """Of probes, bootstrap and controls."""


class Ruler:
    """Measures edits of one subject on the report rows, each feature set probed once."""

    def __init__(self, subject: Subject, data: Data, measures: Measures) -> None:
        self.subject, self.data, self.measures = subject, data, measures
        self.prober = Prober(seed=measures.seed)
        self.alignment: Alignment = decide_alignment(
            extract(subject, data.fit).logits, data.fit.groups, measures.aligned
        )

    @property
    def aligned_by(self) -> dict[str, str]:
        """Bias column to who decided which target its values pull toward."""
        return dict(zip(self.data.report.groups.columns, self.alignment.source, strict=True))

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

    def vanilla(self) -> tuple[Operation, Audit]:
        """Measure the subject as it is: a row of the table, and its audit."""
        found = self.audit(mlp=True)
        return Operation("vanilla", found.to_json(), _NO_MASK, 0.0), found

    def verdict(self, base: Audit, edited: Audit, *, against: str = "vanilla") -> Verdict:
        """Judge an operation against another one on the report rows."""
        groups = self.data.report.groups
        return judge(
            base.correct,
            edited.correct,
            groups.index,
            groups.num_groups,
            min_group=self.measures.min_group,
            gap_intervals=base.gap_intervals,
            leaks=base.logit_leaks,
            aligned_by=self.aligned_by,
            against=against,
            seed=self.measures.seed,
        )

    def row(self, name: str, edit: Edit, seconds: float, *, mlp: bool = False) -> Operation:
        """Measure one edit as a row of the table."""
        return self.describe(name, edit, self.audit(edit, mlp=mlp), seconds)

    def describe(self, name: str, edit: Edit, found: Audit, seconds: float) -> Operation:
        """Make the row of an edit that is audited already."""
        return Operation(name, found.to_json(), sparsity(self.subject, edit), seconds)

    def variants(self, edit: Edit) -> dict[str, Edit]:
        """Return the edit by its row's name, last, after the same with or without an erasure."""
        found = {_row_name(edit): edit}
        # A new head alone may be erased too: where the search found no mask.
        if self.subject.head_is_free and (edit.masked or (edit.erasure and edit.updates)):
            erased = edit.erasure is not None
            other = (
                edit.without("erasure") if erased else with_erasure(self.subject, self.data, edit)
            )
            found = {_row_name(other): other, **found}
        return found

    def mean_row(self, name: str, edits: Sequence[Edit], seconds: float) -> Operation:
        """Measure several edits as one row of means."""
        # Five draws would take most of a benchmark's time, and no claim rests on them.
        mlp = self.measures.mlp_every_row and len(edits) == 1
        rows = [self.row(name, edit, seconds, mlp=mlp) for edit in edits]
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
    return Ruler(subject, data, measures or Measures()).audit(edit, mlp=True)


@dataclass(frozen=True, eq=False)
class Controlled:
    """An operation beside the vanilla network, the baselines and the controls."""

    rows: tuple[Operation, ...]
    """Vanilla first, the operation as exported last."""
    vanilla: Audit
    edited: Audit
    notes: tuple[str, ...]
    baselines: Mapping[str, Audit]
    """By name, those that were fitted: `leace`, `dfr`, `finetune`."""


def controlled(ruler: Ruler, edit: Edit, seconds: float) -> Controlled:
    """Measure an edit, without and with erasure, beside everything it has to beat.

    Args:
        ruler: Measures.
        edit: The operation as it will be exported.
        seconds: What its fit took.
    """
    untouched, vanilla = ruler.vanilla()
    edited = ruler.audit(edit, mlp=True)
    obstacle = ruler.subject.head.obstacle(ruler.subject.head_tensors)
    rows = [untouched]
    brief = ruler.measures.brief
    baselines: list[Method] = [] if obstacle else [DFR()]
    if not (obstacle or brief):
        baselines.insert(0, Leace())
    if ruler.measures.with_finetune and not brief:
        baselines.append(_finetune(ruler.measures))
    audits: dict[str, Audit] = {}
    for method in baselines:
        if method.name != edit.method:
            row, audits[method.name] = _fitted_row(ruler, method)
            rows.append(row)
    if edit.masked and not brief:
        rows += _control_rows(ruler, edit, erase=not obstacle)
    *others, (name, _) = ruler.variants(edit).items()
    rows += [ruler.row(other, variant, seconds, mlp=True) for other, variant in others]
    exported = ruler.describe(name, edit, edited, seconds)
    notes = [f"{obstacle}: no row with erasure, dfr or leace"] if obstacle else []
    return Controlled((*rows, exported), vanilla, edited, tuple(notes), audits)


def _control_rows(ruler: Ruler, edit: Edit, *, erase: bool) -> list[Operation]:
    """Measure random and magnitude masks of the same sparsity, settled in the same way."""
    subject, data, settled = ruler.subject, ruler.data, bool(edit.buffers)
    seeds = range(_RANDOM_SEEDS)
    controls = {
        "random": [Random(like=edit, recalibrate=settled, seed=seed) for seed in seeds],
        "magnitude": [Magnitude(like=edit, recalibrate=settled, seed=ruler.measures.seed)],
    }
    rows = []
    for name, methods in controls.items():
        if name == edit.method:
            continue
        began = time.perf_counter()
        edits = [method.fit(subject, data) for method in methods]
        took = (time.perf_counter() - began) / len(edits)
        rows.append(ruler.mean_row(name, edits, took))
        if erase:
            erased = [with_erasure(subject, data, e) for e in edits]
            rows.append(ruler.mean_row(f"{name}+erase", erased, took))
    return rows


def _row_name(edit: Edit) -> str:
    changed = edit.masked or edit.updates
    return f"{edit.method}+erase" if changed and edit.erasure else edit.method


def _finetune(measures: Measures) -> Finetune:
    method, most = Finetune(seed=measures.seed), measures.finetune_epochs
    return method if most is None else replace(method, epochs=min(most, method.settings().epochs))


def _fitted_row(ruler: Ruler, method: Method) -> tuple[Operation, Audit]:
    began = time.perf_counter()
    edit = method.fit(ruler.subject, ruler.data)
    seconds = time.perf_counter() - began
    found = ruler.audit(edit, mlp=ruler.measures.mlp_every_row)
    return ruler.describe(method.name, edit, found, seconds), found


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
