"""Tables: a CSV or TSV file becomes checked columns of text, each fault with its row."""

from __future__ import annotations

import csv as csv_format
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surgeon.errors import LabelError


@dataclass(frozen=True)
class Table:
    """Hold the wanted columns of a file as text, and what is wrong with them so far.

    Args:
        csv: the file.
        rows: for each row its line in the file, the header being row 1.
        cells: for each column the text of its N cells, without surrounding blanks.
        faults: line and description; line 0 for the whole file.
    """

    csv: Path
    rows: tuple[int, ...]
    cells: dict[str, list[str]] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def fault(self, text: str, row: int = 0) -> None:
        """Note a fault of one row, or of the whole file."""
        self.faults.append((row, f"row {row}: {text}" if row else text))

    def raise_faults(self) -> None:
        """Raise the faults at once, those of the whole file first, then in the order of the rows.

        Raises:
            LabelError: there are any.
        """
        if not self.faults:
            return
        count = len(self.faults)
        raise LabelError(
            f"{self.csv}: {count} {'fault' if count == 1 else 'faults'} in {len(self.rows)} "
            f"{'row' if len(self.rows) == 1 else 'rows'}; correct the file, then run again",
            [text for _, text in sorted(self.faults, key=lambda fault: fault[0])],
        )


def read_table(csv: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read UTF-8 text separated by commas, or by tabs (`.tsv`, `.tab`, or a header with tabs only).

    Text is taken as it stands, less surrounding blanks: `NA` and `None` are names like any other.
    Blank lines are skipped; a blank cell in a column that is read is a fault.

    Args:
        csv: the file.
        wanted: columns that must be there.
        optional: columns that are read where present; others are ignored.

    Returns:
        The columns, with the faults found so far.

    Raises:
        LabelError: the file, its header or its layout cannot be used.
    """
    text = _read_text(csv)
    first = text.lstrip().split("\n", 1)[0]
    tabs = csv.suffix.lower() in (".tsv", ".tab") or ("\t" in first and "," not in first)
    records = _read_records(csv, text, "\t" if tabs else ",")
    (_, header), body = records[0], records[1:]
    _check_header(csv, header, wanted, optional)
    if not body:
        raise LabelError(f"{csv}: holds a header and no rows; expected one row per image")
    table = Table(csv, tuple(row for row, _ in body))
    for row, record in body:
        if len(record) < len(header) or any(record[len(header) :]):
            table.fault(f"{len(record)} fields, expected {len(header)} as in the header", row)
    table.raise_faults()
    for column in [*wanted, *(name for name in optional if name in header)]:
        place = header.index(column)
        table.cells[column] = cells = [record[place] for _, record in body]
        for row, cell in zip(table.rows, cells, strict=True):
            if not cell:
                table.fault(f"column '{column}' is blank", row)
    return table


def list_names(names: Iterable[str], most: int = 10) -> str:
    """List names in quotes, the first few of many."""
    quoted = [f"'{name}'" for name in names]
    more = [f"and {len(quoted) - most} more"] if len(quoted) > most else []
    return ", ".join(quoted[:most] + more)


def _read_text(csv: Path) -> str:
    """Read UTF-8 text, with or without a byte order mark."""
    if not csv.is_file():
        raise LabelError(f"{csv}: no such file; give the path of a CSV file with labels")
    try:
        text = csv.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LabelError(f"{csv}: cannot be read ({error.strerror}); check its rights") from error
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{csv}: byte {error.start} is not UTF-8 text; save the table as CSV in UTF-8"
        ) from error
    if "\0" in text:
        raise LabelError(f"{csv}: holds zero bytes, so not UTF-8 text; save it as CSV in UTF-8")
    if not text.strip():
        raise LabelError(f"{csv}: is empty; expected a header and one row per image")
    return text


def _read_records(csv: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Split text into fields, each record with the line it starts on."""
    reader = csv_format.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for record in reader:
            fields = [cell.strip() for cell in record]
            if any(fields):
                records.append((line, fields))
            line = reader.line_num + 1
    except csv_format.Error as error:
        raise LabelError(f"{csv} row {line}: {error}; check the quotes of this row") from error
    return records


def _check_header(
    csv: Path, header: Sequence[str], wanted: Sequence[str], optional: Sequence[str]
) -> None:
    """Raise unless every wanted column is there once and has one role."""
    faults = [
        f"column '{name}' stands {count} times in the header; keep one"
        for name, count in Counter(filter(None, header)).items()
        if count > 1
    ]
    faults += [
        f"column '{name}' is asked for {count} times; each can serve one purpose"
        for name, count in Counter([*wanted, *optional]).items()
        if count > 1
    ]
    missing = [name for name in dict.fromkeys(wanted) if name not in header]
    if missing:
        hint = "; separate fields by commas or tabs" if ";" in "".join(header) else ""
        faults.append(f"no column {list_names(missing)}; found {list_names(header)}{hint}")
    if faults:
        raise LabelError(
            f"{csv}: the header cannot be used; rename columns in the file or choose others",
            faults,
        )
