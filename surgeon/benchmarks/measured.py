"""One operation of a benchmark, fitted and measured, as its result file holds it."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from surgeon.benchmarks.alignment import by_alignment, own_values
from surgeon.benchmarks.files import code_commit
from surgeon.benchmarks.protocol import BenchSet
from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.export import environment
from surgeon.measure import Measures, measure
from surgeon.methods import FFW, Method
from surgeon.methods.base import Progress
from surgeon.operate import Announce, Outcome, operate
from surgeon.record import Operation
from surgeon.slicing.cut import cut, units_off
from surgeon.subject import Subject
from surgeon.surgery import apply
from surgeon.verdict import judge


def measured(
    subject: Subject,
    data: Data,
    bench: BenchSet,
    name: str,
    method: Method,
    measures: Measures,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Fit a method and measure it on the report rows.

    Args:
        subject: The vanilla network.
        data: Labelled rows.
        bench: What they were made from.
        name: Of the operation. `ffw` brings the baselines and controls along; under another one
            only the operation is measured, without and with its erasure.
        method: What to fit.
        measures: How to measure.
        progress: Takes one record per epoch.
        announce: Takes one line per stage.

    Returns:
        `environment`, `git`, `seconds` (`fit`, and `whole` with all measurements), `groups`,
        `operations`, and `verdict` and `against_dfr`, each None where it was not judged; with unit
        masks `sliced`, what slicing leaves.
    """
    say = announce or (lambda _: None)
    began, outcome = time.perf_counter(), None
    if name == FFW.name:
        outcome = operate(subject, data, method, measures=measures, progress=progress, announce=say)
        rows = outcome.report.operations
        edit, fit = outcome.edit, rows[-1].seconds
    else:
        edit = method.fit(subject, data, progress=progress)
        fit = time.perf_counter() - began
        say(f"measuring on {len(data.report)} report rows")
        edits = {name: edit}
        if edit.erasure and (edit.masked or edit.updates):
            edits = {name: edit.without("erasure"), f"{name}+erase": edit}
        rows = [replace(row, seconds=fit) for row in measure(subject, data, edits, measures)]
    own = own_values(bench)
    whole = time.perf_counter() - began
    return {
        "environment": _environment(subject),
        "git": code_commit(),
        "seconds": _rounded({"fit": fit, "whole": whole}),
        "groups": _groups(rows[0]),
        "operations": [_row(row, own) for row in rows],
        "verdict": outcome and _rounded(outcome.report.verdict.to_json()),
        "against_dfr": outcome and _against_dfr(outcome, data, measures),
        **({"sliced": _sliced(subject, edit, data)} if edit.units else {}),
    }


def _environment(subject: Subject) -> dict[str, Any]:
    cuda = subject.device.type == "cuda"
    name = torch.cuda.get_device_name(subject.device) if cuda else platform.machine()
    return {**environment(subject), "device_name": name, "threads": torch.get_num_threads()}


def _groups(row: Operation) -> list[dict[str, Any]]:
    """Return the groups once; the rows of the table hold one accuracy for each, in this order."""
    return [{key: group[key] for key in ("target", "bias", "n")} for group in row.audit["groups"]]


def _row(row: Operation, own: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    document = row.to_json()
    audit = dict(document["audit"])
    groups: Sequence[Mapping[str, Any]] = audit.pop("groups")
    audit["group_accuracies"] = [group["accuracy"] for group in groups]
    return _rounded({**document, "audit": audit, "by_alignment": by_alignment(groups, own)})


def _against_dfr(outcome: Outcome, data: Data, measures: Measures) -> dict[str, Any] | None:
    """Judge the operation against last-layer retraining on the same rows."""
    dfr = outcome.controlled.baselines.get("dfr")
    if dfr is None:
        return None
    verdict = judge(
        dfr.correct,
        outcome.controlled.edited.correct,
        data.report.groups.index,
        data.report.groups.num_groups,
        min_group=measures.min_group,
        gap_intervals=dfr.gap_intervals,
        leaks=dfr.logit_leaks,
        aligned_by=outcome.report.verdict.aligned_by,
        against="dfr",
        seed=measures.seed,
    )
    return _rounded(verdict.to_json())


def _sliced(subject: Subject, edit: Edit, data: Data) -> dict[str, int]:
    """Cut out what is off, and count the report rows that are still predicted alike."""
    folded = apply(subject.to("cpu"), edit)
    made = cut(folded, units_off(folded, edit))
    whole, smaller = (
        extract(net.to(subject.device), data.report).logits.argmax(1)
        for net in (folded, made.subject)
    )
    had, left = made.parameters
    same = int((whole == smaller).sum())
    return {"rows": len(whole), "same": same, "parameters": had, "parameters_left": left}


def _rounded(value: Any) -> Any:
    """Round every number of a document to six digits, more than any table shows."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
