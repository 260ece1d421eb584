"""How often each group occurred where the model was trained, for the reweighted average."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from surgeon.groups import Groups
from surgeon.table import read_table


def read_train_counts(csv: str | Path, groups: Groups) -> Tensor:
    """Read a table of group counts: `target`, every fitted bias column, `count`.

    Args:
        csv: CSV or TSV file; names as in the label file; groups that are absent count 0.
        groups: The labelled rows, for names and order.

    Returns:
        `[G]` float64 counts, >= 0, in group order.

    Raises:
        LabelError: A name is unknown, a group is given twice, or a count is no whole number;
            every fault is listed.
    """
    columns = [groups.columns[k] for k in groups.fitted]
    table = read_table(Path(csv), ["target", *columns, "count"])
    order = {_key(*groups.names(g)): g for g in range(groups.num_groups)}
    counts = torch.zeros(groups.num_groups, dtype=torch.float64)
    seen: set[int] = set()
    for i, row in enumerate(table.rows):
        values = {name: table.cells[name][i] for name in columns}
        group = order.get(_key(table.cells["target"][i], values))
        text = table.cells["count"][i]
        if group is None:
            table.fault("no such group in the label file; use its names", row)
        elif group in seen:
            table.fault("group is given twice", row)
        elif not (text.isascii() and text.isdigit()):
            table.fault(f"count '{text}', expected a whole number", row)
        else:
            counts[group] = int(text)
            seen.add(group)
    if not table.faults and not counts.sum():
        table.fault("every count is zero")
    table.raise_faults()
    return counts


def _key(target: str, values: dict[str, str]) -> tuple[str, ...]:
    return (target, *(values[column] for column in sorted(values)))
