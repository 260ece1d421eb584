"""One operation of a comparison: fitted, measured, and kept as a document."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.checkpoint import file_sha256
from surgeon.data import extract
from surgeon.edit import Edit
from surgeon.measure import Ruler
from surgeon.methods import Method
from surgeon.methods.base import device_changes, new_edit, select_loss
from surgeon.methods.controls import Random
from surgeon.whole import replacing

# A random mask is the mean of so many draws.
_DRAWS = 5


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be fitted and measured."""

    name: str
    method: Method | None
    """None: the network as it is."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What all tasks of a process share."""

    ruler: Ruler
    edits: Path
    """Folder that takes the edit of each task."""


def fit_and_measure(bench: Bench, task: Task) -> dict[str, Any]:
    """Fit a task's method on fit rows and measure it on report rows.

    Args:
        bench: Measures, and takes the edit.
        task: What to do.

    Returns:
        `operations`, the rows of the table as `report.json` has them, the exported one last;
        `correct`, for each `[N]` report rows as a string of 0 and 1, None for means of draws;
        `select_loss` of the exported one in nats, groups equal, None for draws; `history`, one
        record per epoch; `edit_sha256` of its file, None where nothing changes; `aligned_by`.
    """
    ruler, history = bench.ruler, []
    began = time.perf_counter()
    if task.method is None:
        edits = [new_edit(ruler.subject, task.name)]
    else:
        edits = [
            method.fit(ruler.subject, ruler.data, progress=history.append)
            for method in _draws(task.method)
        ]
    seconds = (time.perf_counter() - began) / len(edits) if task.method else 0.0
    rows, correct = [], []
    variants = [ruler.variants(edit) if task.method else {task.name: edit} for edit in edits]
    for name in variants[0]:
        own = [variant[name] for variant in variants]
        if len(own) > 1:
            rows.append(ruler.mean_row(name, own, seconds))
            correct.append(None)
        else:
            found = ruler.audit(own[0] if task.method else None, mlp=True)
            rows.append(ruler.describe(name, own[0], found, seconds))
            correct.append(_digits(found.correct))
    one = len(edits) == 1
    return {
        "operations": [row.to_json() for row in rows],
        "correct": correct,
        "select_loss": _loss(ruler, edits[0]) if one else None,
        "history": [dict(record) for record in history],
        "edit_sha256": _kept(bench, task, edits[0]) if task.method else None,
        "aligned_by": ruler.aligned_by,
    }


def correct_rows(document: Mapping[str, Any], row: int) -> Tensor | None:
    """Return `[N]` bool, the report rows that an operation of a document gets right."""
    digits = document["correct"][row]
    return None if digits is None else torch.tensor([digit == "1" for digit in digits])


def _draws(method: Method) -> list[Method]:
    if not isinstance(method, Random):
        return [method]
    return [replace(method, seed=method.seed + draw) for draw in range(_DRAWS)]


def _digits(correct: Tensor) -> str:
    return "".join("1" if right else "0" for right in correct.tolist())


def _loss(ruler: Ruler, edit: Edit) -> float:
    rows = ruler.data.select
    outputs = extract(ruler.subject, rows, overrides=device_changes(ruler.subject, edit))
    return select_loss(outputs.logits, rows.groups)


def _kept(bench: Bench, task: Task, edit: Edit) -> str:
    path = bench.edits / f"{task.name}.safetensors"
    with replacing(path) as temporary:
        edit.save(temporary)
    return file_sha256(path)
