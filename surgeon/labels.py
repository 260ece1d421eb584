"""Labels: a table of image paths, targets and bias values becomes one group per row."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from surgeon.errors import LabelError
from surgeon.groups import Groups, Labels
from surgeon.table import Table, list_names, read_table

_PARTS = {
    "fit": "fit",
    "select": "select",
    "report": "report",
    "train": "fit",
    "val": "select",
    "test": "report",
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
# Beyond this a bias column surely holds measurements or identifiers, and the group tables explode.
_MAX_GROUPS = 1_000_000
_LISTED = 5


def read_labels(
    csv: str | Path,
    *,
    num_classes: int,
    label_names: Sequence[str] | None,
    target_col: str = "target",
    bias_cols: Sequence[str] = ("bias",),
    audit_cols: Sequence[str] = (),
    images: str | Path | None = None,
) -> Labels:
    """Read a table of labels (CSV or TSV, UTF-8) and check all of it before any image is opened.

    The columns are `path`, the target, the biases and, if present, `split`; others are ignored.
    Targets are class names or numbers 0..C-1; bias values that are all whole numbers are ordered as
    numbers, otherwise as text. Image paths start from the file's own folder and stay inside it.

    Args:
        csv: the file.
        num_classes: C of the model.
        label_names: the model's C class names in its order, if it has them.
        target_col: column of the target.
        bias_cols: columns of the biases to remove; may be empty.
        audit_cols: columns of biases to measure only.
        images: folder that image paths start from and stay inside, instead of the file's own.

    Returns:
        The rows in the order of the file.

    Raises:
        LabelError: the file cannot be used; every fault is listed.
    """
    csv = Path(csv)
    columns = (*bias_cols, *audit_cols)
    table = read_table(csv, ("path", target_col, *columns), optional=("split",))
    paths = _check_paths(table, csv.parent if images is None else Path(images))
    target, target_names, notes = _number_targets(table, target_col, num_classes, label_names)
    numbered = {column: _number_values(table.cells[column]) for column in columns}
    split = _read_split(table)
    _check_values(table, num_classes, {column: numbered[column][1] for column in bias_cols})
    table.raise_faults()
    biases = [torch.tensor(numbers) for numbers, _ in numbered.values()]
    groups = Groups(
        target=torch.tensor(target),
        biases=torch.stack(biases, 1)
        if biases
        else torch.empty((len(paths), 0), dtype=torch.int64),
        target_names=target_names,
        columns=columns,
        value_names=tuple(names for _, names in numbered.values()),
        audited=tuple(audit_cols),
    )
    return Labels(csv, paths, groups, split, table.rows, (*notes, *_small_groups(groups)))


def _check_paths(table: Table, root: Path) -> tuple[Path, ...]:
    """Resolve the image paths; each must be a file of its own inside the root."""
    if not root.is_dir():
        raise LabelError(f"{root}: no such folder; give the folder that image paths start from")
    real_root = root.resolve()
    parents: dict[Path, tuple[Path, bool]] = {}
    seen: dict[Path, int] = {}
    paths: list[Path] = []
    for row, name in zip(table.rows, table.cells["path"], strict=True):
        path = root / name
        paths.append(path)
        if not name:
            continue
        try:
            if path.parent not in parents:
                parent = path.parent.resolve()
                parents[path.parent] = (parent, parent.is_relative_to(real_root))
            parent, inside = parents[path.parent]
            real, mode = parent / path.name, path.lstat().st_mode
            if stat.S_ISLNK(mode):
                real, mode = path.resolve(), path.stat().st_mode
                inside = real.is_relative_to(real_root)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
            table.fault(f"no image '{name}' under {root}", row)
            continue
        if not inside:
            table.fault(f"path '{name}' leaves {root}; keep the images inside it", row)
        elif not stat.S_ISREG(mode):
            table.fault(f"path '{name}' is not a file", row)
        elif real in seen:
            table.fault(f"path '{name}' is the image of row {seen[real]} again", row)
        else:
            seen[real] = row
    return tuple(paths)


def _number_targets(
    table: Table, column: str, num_classes: int, label_names: Sequence[str] | None
) -> tuple[list[int], tuple[str, ...], list[str]]:
    """Number the targets as the model does; also give the class names and what was assumed."""
    cells = table.cells[column]
    values = {cell for cell in cells if cell}
    names = tuple(label_names or map(str, range(num_classes)))
    assert len(names) == num_classes
    whole = {value: int(value) for value in values if _INTEGER.fullmatch(value)}
    expected = f"expected 0..{num_classes - 1}"
    notes: list[str] = []
    if label_names and not values.isdisjoint(names):
        times = Counter(names)
        numbers = {name: place for place, name in enumerate(names) if times[name] == 1}
        expected = f"expected one of {list_names(numbers)}"
        if len(numbers) < num_classes:
            expected += " (or numbers in every row, for classes that share a name)"
    elif whole or label_names:
        numbers = {value: place for value, place in whole.items() if 0 <= place < num_classes}
        expected += f" or one of {list_names(names)}" if label_names else ""
    elif len(values) == num_classes:
        names = tuple(sorted(values))
        numbers = {name: place for place, name in enumerate(names)}
        order = list_names((f"{name}' = '{place}" for name, place in numbers.items()), _LISTED)
        notes.append(
            f"{table.csv}: the checkpoint names no classes, so targets were numbered in "
            f"alphabetical order as torchvision's ImageFolder does ({order}); "
            "write class numbers if that is wrong"
        )
    else:
        table.fault(
            f"column '{column}' has {len(values)} names ({list_names(sorted(values))}), the "
            f"checkpoint {num_classes} classes without names; write class numbers, {expected}"
        )
        return [0] * len(cells), names, notes
    for row, cell in zip(table.rows, cells, strict=True):
        if cell and cell not in numbers:
            table.fault(f"target '{cell}' in column '{column}', {expected}", row)
    if values <= numbers.keys() and len({numbers[value] for value in values}) == 1:
        table.fault(f"column '{column}' has the one target '{cells[0]}'; expected two or more")
    return [numbers.get(cell, 0) for cell in cells], names, notes


def _number_values(cells: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Number bias values in the order of whole numbers if all are such, else of the text."""
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        whole = sorted(set(map(int, cells)))
        places = {value: place for place, value in enumerate(whole)}
        return [places[int(cell)] for cell in cells], tuple(map(str, whole))
    names = sorted(set(cells))
    numbers = {name: place for place, name in enumerate(names)}
    return [numbers[cell] for cell in cells], tuple(names)


def _read_split(table: Table) -> tuple[str, ...] | None:
    """Read the split column, if there is one, as fit, select and report."""
    if "split" not in table.cells:
        return None
    for row, cell in zip(table.rows, table.cells["split"], strict=True):
        if cell and cell.lower() not in _PARTS:
            table.fault(f"split '{cell}', expected one of {list_names(_PARTS)}", row)
    return tuple(_PARTS.get(cell.lower(), "") for cell in table.cells["split"])


def _check_values(table: Table, num_classes: int, names: dict[str, tuple[str, ...]]) -> None:
    """Note bias columns with a single value, or with too many."""
    num_groups = num_classes
    for column, values in names.items():
        num_groups *= len(values)
        if len(values) < 2:
            table.fault(
                f"column '{column}' has the one value {list_names(values)}; expected two or more"
            )
    if num_groups > _MAX_GROUPS:
        table.fault(
            f"{num_groups} groups of target and {list_names(names)}, expected at most "
            f"{_MAX_GROUPS}; bin the values of a column that holds measurements"
        )


def _small_groups(groups: Groups) -> list[str]:
    """Remark on groups that are empty or too small to fit on."""
    counts = groups.counts()
    notes: list[str] = []
    for chosen, what in (
        (counts == 0, "no rows; their figures will be NaN"),
        ((counts == 1) | (counts == 2), "1 or 2 rows; these go to the report part"),
    ):
        small = chosen.nonzero().flatten().tolist()
        if small:
            shown = (groups.names(group) for group in small[:_LISTED])
            listed = ["(" + ", ".join([target, *bias.values()]) + ")" for target, bias in shown]
            more = f" and {len(small) - _LISTED} more" if len(small) > _LISTED else ""
            have = "group has" if len(small) == 1 else "groups have"
            notes.append(f"{len(small)} {have} {what}: {', '.join(listed)}{more}")
    return notes
