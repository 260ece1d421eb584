"""Results of `surgeon bench` put together: which are of one setting, in which order they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
"""A result file's document."""
Row = Mapping[str, Any]
"""One of its operations."""

_ORDER = (
    *("vanilla", "leace", "dfr", "finetune", "random", "random+erase", "magnitude"),
    *("magnitude+erase", "ffw", "ffw+erase", "ffw-structured", "ffw-structured+erase"),
    *("ffw-refit", "ffw-refit+erase"),
    *("ffw-paper", "ffw-paper+erase"),
    # As the paper's table 5 has them.
    *("vcba-weights", "vcba-all", "vcba-misaligned", "vcba", "vcba-paper"),
)


def grouped(
    results: Sequence[Result], fields: Sequence[str]
) -> dict[tuple[Any, ...], list[Result]]:
    """Put results of equal settings together, in ascending order; None comes first.

    Args:
        results: In any order.
        fields: Of the setting, that have to be equal.

    Returns:
        Values of the fields to results, seeds ascending.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in sorted(results, key=lambda r: [place(r, name) for name in (*fields, "seed")]):
        key = tuple(result["setting"][name] for name in fields)
        groups.setdefault(key, []).append(result)
    return groups


def place(result: Result, field: str) -> tuple[bool, Any]:
    """Return a key that orders values, None first; labelled rows count as they were dealt."""
    value = result["setting"][field]
    if field == "rows":
        return True, result["rows"]["fit"]
    return value is not None, value if value is not None else 0


def is_default(result: Result) -> bool:
    """Return whether a result is of the benchmark's own network and rows, and of all epochs."""
    own = ("net", "rows", "label_rho", "discovery", "epochs")
    return all(result["setting"][name] is None for name in own)


def is_as_trained(result: Result) -> bool:
    """Return whether a result's labelled rows follow the shortcut as the training rows do.

    Network and epochs are the benchmark's own; how many rows there are does not matter.
    """
    setting = result["setting"]
    own = all(setting[name] is None for name in ("net", "epochs"))
    return own and setting["label_rho"] == setting["rho"] is not None


def facts(result: Result, *, without: str = "") -> str:
    """Say what distinguishes a setting from its benchmark's own."""
    words = {
        "rho": "rho {}",
        "net": "net {}",
        "rows": "{} labelled rows",
        "label_rho": "labels at rho {}",
        "discovery": "bias guessed by {}",
        "epochs": "at most {} epochs",
    }
    setting = result["setting"]
    shown = [name for name in words if name != without and setting[name] is not None]
    return ", ".join(words[name].format(setting[name]) for name in shown)


def point(result: Result, field: str) -> str:
    """Name a result's place on a curve over one field: `net`, `rows` or `label_rho`."""
    if field == "rows":
        return f"{result['rows']['fit']} + {result['rows']['select']}"
    own = {"net": result["training"]["net"], "label_rho": "unbiased"}
    value = result["setting"][field]
    return own[field] if value is None else str(value)


def operation_rows(results: Sequence[Result]) -> dict[str, list[Row]]:
    """Return the rows of each operation, one for every seed.

    An operation's own result goes before the row that another one brought along, and of those the
    one of `ffw`, whose baselines are all of one network.
    """
    found: dict[str, dict[int, Row]] = {}
    for result in sorted(results, key=lambda result: result["operation"] != "ffw"):
        seed = result["setting"]["seed"]
        for row in result["operations"]:
            rows = found.setdefault(row["name"], {})
            if row["name"] == result["operation"]:
                rows[seed] = row
            else:
                rows.setdefault(seed, row)
    return {name: list(rows.values()) for name, rows in found.items()}


def ordered(names: Iterable[str]) -> list[str]:
    """Put operations in the order of every table; unknown ones come last."""
    known = set(names)
    return [*(n for n in _ORDER if n in known), *sorted(known.difference(_ORDER))]
