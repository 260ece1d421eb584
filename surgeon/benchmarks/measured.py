"""One operation of a benchmark, fitted and measured, as its result file holds it."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from surgeon.benchmarks.alignment import by_alignment, own_values
from surgeon.benchmarks.files import code_commit
from surgeon.benchmarks.protocol import BenchSet
from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.export import environment
from surgeon.measure import Measures, Ruler
from surgeon.methods import FFW, Method
from surgeon.methods.base import Progress
from surgeon.operate import Announce, operate
from surgeon.record import Operation
from surgeon.slicing.cut import cut, units_off
from surgeon.subject import Subject
from surgeon.surgery import apply
from surgeon.verdict import Verdict


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
            the operation is measured beside the vanilla network, without and with its erasure.
        method: What to fit.
        measures: How to measure.
        progress: Takes one record per epoch.
        announce: Takes one line per stage.

    Returns:
        `environment`, `git`, `seconds` (`fit`, and `whole` with all measurements), `groups`,
        `operations`, `verdict` and `against_dfr` (None where that was not measured); with unit
        masks `sliced`, what slicing leaves.
    """
    say = announce or (lambda _: None)
    began = time.perf_counter()
    if name == FFW.name:
        outcome = operate(subject, data, method, measures=measures, progress=progress, announce=say)
        found, edit = outcome.controlled, outcome.edit
        rows, fit, dfr = found.rows, found.rows[-1].seconds, found.baselines.get("dfr")
        verdicts = {
            "verdict": outcome.report.verdict.to_json(),
            "against_dfr": dfr
            and outcome.ruler.verdict(dfr, found.edited, against="dfr").to_json(),
        }
    else:
        edit = method.fit(subject, data, progress=progress)
        fit = time.perf_counter() - began
        say(f"measuring on {len(data.report)} report rows")
        rows, verdict = _beside_vanilla(Ruler(subject, data, measures), name, edit, fit)
        verdicts = {"verdict": verdict.to_json(), "against_dfr": None}
    own = own_values(bench)
    whole = time.perf_counter() - began
    return {
        "environment": _environment(subject),
        "git": code_commit(),
        "seconds": _rounded({"fit": fit, "whole": whole}),
        "groups": _groups(rows[0]),
        "operations": [_row(row, own) for row in rows],
        **_rounded(verdicts),
        **({"sliced": _sliced(subject, edit, data)} if edit.units else {}),
    }


def _beside_vanilla(
    ruler: Ruler, name: str, edit: Edit, seconds: float
) -> tuple[list[Operation], Verdict]:
    """Measure the vanilla network, and an edit as it is and, where it erases, without that."""
    row, vanilla = ruler.vanilla()
    rows = [row]
    if edit.erasure and (edit.masked or edit.updates):
        rows.append(ruler.row(name, edit.without("erasure"), seconds, mlp=True))
        name = f"{name}+erase"
    edited = ruler.audit(edit, mlp=True)
    rows.append(ruler.describe(name, edit, edited, seconds))
    return rows, ruler.verdict(vanilla, edited)


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
