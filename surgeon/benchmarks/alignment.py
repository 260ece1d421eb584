"""Accuracy by which biases go with the target, as the training rows had it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch

from surgeon.benchmarks.protocol import BenchSet

Group = Mapping[str, Any]


def own_values(bench: BenchSet) -> dict[str, dict[str, str]]:
    """Return, for every bias, the value that most training rows of each target have.

    Unlike the audit's alignment this is known from the training rows, which no owner has, and it
    lets one value belong to several targets.

    Args:
        bench: The set.

    Returns:
        Column to target to value, by name.
    """
    found = {}
    for k, (column, values) in enumerate(bench.bias_names.items()):
        cells = bench.train.target * len(values) + bench.train.biases[:, k]
        shape = len(bench.target_names), len(values)
        counts = torch.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        most = [values[i] for i in counts.argmax(1).tolist()]
        found[column] = dict(zip(bench.target_names, most, strict=True))
    return found


def by_alignment(groups: Sequence[Group], own: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Put groups together by which of their biases are the target's own.

    Args:
        groups: Rows of an audit: `target`, `bias`, `n` and `accuracy`.
        own: As `own_values` returns it.

    Returns:
        `groups`: one for every pattern of aligned and conflicting biases, all aligned first, with
        `n` and the accuracy over its rows; `mean`: of their accuracies, None if one has no rows;
        `gap`: for every bias the accuracy over aligned less that over conflicting rows.
    """
    patterns = [dict(zip(own, p, strict=True)) for p in product((True, False), repeat=len(own))]
    rows = []
    for pattern in patterns:
        n, accuracy = _pool([g for g in groups if _pattern(g, own) == pattern])
        rows.append({"aligned": pattern, "n": n, "accuracy": accuracy})
    known = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    gaps = {}
    for column in own:
        toward, away = (
            _pool([g for g in groups if _pattern(g, own)[column] == side])[1]
            for side in (True, False)
        )
        gaps[column] = None if toward is None or away is None else toward - away
    mean = sum(known) / len(known) if len(known) == len(rows) else None
    return {"groups": rows, "mean": mean, "gap": gaps}


def _pattern(group: Group, own: Mapping[str, Mapping[str, str]]) -> dict[str, bool]:
    return {column: group["bias"][column] == own[column][group["target"]] for column in own}


def _pool(groups: Sequence[Group]) -> tuple[int, float | None]:
    """Return the rows of some groups, and the accuracy over them, None if there are none."""
    filled = [group for group in groups if group["n"]]
    n = sum(group["n"] for group in filled)
    return n, sum(group["n"] * group["accuracy"] for group in filled) / n if n else None
