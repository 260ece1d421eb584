"""The folder of a comparison: what is finished is kept, and used again where nothing changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from surgeon.checkpoint import file_sha256
from surgeon.data import Data
from surgeon.edit import Edit
from surgeon.errors import ArtefactError
from surgeon.export import as_json, base_record, environment, write_json
from surgeon.measure import Measures
from surgeon.methods import Method
from surgeon.operate import config_of
from surgeon.subject import Subject
from surgeon.whole import check_out, replacing

VERSION = 1
MARKER = "comparison.json"
"""Shows that a folder is a comparison, and holds its result once there is one."""


@dataclass(frozen=True, eq=False)
class ComparisonFolder:
    """A folder with `rows`, `edits` and `comparison.json`.

    Attributes:
        path: The folder.
        stamp: What is compared on what, as `stamp_of` makes it: all rows of a folder share it.
    """

    path: Path
    stamp: Mapping[str, Any]

    @property
    def edits(self) -> Path:
        """Folder of the edits."""
        return self.path / "edits"

    def open(self, *, force: bool) -> None:
        """Make the folder, or take up what an earlier comparison left in it.

        Args:
            force: Start anew where there is an earlier comparison.

        Raises:
            ArtefactError: It holds something else, or cannot be written.
        """
        exists = self.path.exists()
        check_out(self.path, force=exists, marker=MARKER)
        if exists and force:
            shutil.rmtree(self.path)
        marker = self.path / MARKER
        if marker.is_file():
            known = _read(marker)
            others = [key for key, value in self.stamp.items() if known.get(key) != value]
            if others:
                raise ArtefactError(
                    f"{self.path}: holds a comparison with other {', '.join(others)}; pass --force "
                    "to start anew, or another --out"
                )
        else:
            self._write(MARKER, self.stamp)

    def read(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is kept of an operation, None if its settings or its edit are others.

        Raises:
            ArtefactError: The file is damaged.
        """
        path, edit = self.path / "rows" / f"{name}.json", self.edits / f"{name}.safetensors"
        if not path.is_file():
            return None
        known = _read(path)
        kept = known.get("edit_sha256")
        same = all(known.get(key) == value for key, value in settings.items())
        whole = kept is None or (edit.is_file() and file_sha256(edit) == kept)
        return known if same and whole else None

    def keep(self, name: str, settings: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        """Keep an operation with its settings."""
        self._write(f"rows/{name}.json", {**settings, **document})

    def edit(self, name: str) -> Edit:
        """Return a kept edit."""
        return Edit.load(self.edits / f"{name}.safetensors")

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result beside the stamp."""
        self._write(MARKER, {**self.stamp, **result})

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        with replacing(self.path / name) as temporary:
            write_json(temporary, document)


def stamp_of(subject: Subject, data: Data, measures: Measures) -> dict[str, Any]:
    """Say what is compared: network, rows with their parts, how and where they are measured."""
    digest = hashlib.sha256()
    for part in (data.fit, data.select, data.report):
        groups = part.groups
        names = (groups.target_names, groups.columns, groups.value_names, groups.audited)
        digest.update(repr((len(part), names)).encode())
        for tensor in (groups.target, groups.biases):
            digest.update(tensor.contiguous().numpy().tobytes())
        for row in part.index.tolist():
            digest.update(part.images.digests[row])
    how = {field.name: getattr(measures, field.name) for field in fields(measures)}
    if measures.train_counts is not None:
        how["train_counts"] = measures.train_counts.tolist()
    preprocessing = subject.preprocessing.to_config()
    base = {**base_record(subject), "preprocessing": preprocessing}
    return as_json(
        {
            "version": VERSION,
            "base": base,
            "rows": digest.hexdigest(),
            "measures": how,
            "environment": environment(subject),
        }
    )


def settings_of(method: Method | None) -> dict[str, Any]:
    """Say what the row of one operation depends on besides; None is the network as it is."""
    if method is None:
        return {"config": {"method": "vanilla"}, "like": None}
    like: Edit | None = getattr(method, "like", None)
    if like is None:
        return as_json({"config": config_of(method), "like": None})
    digest = hashlib.sha256()
    kept = {**like.masks, **{name: unit.keep for name, unit in like.units.items()}}
    for name, keep in sorted(kept.items()):
        digest.update(name.encode() + keep.contiguous().numpy().tobytes())
    return as_json({"config": config_of(method), "like": digest.hexdigest()})


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict):
            return document
        reason = "not an object"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ArtefactError(f"{path}: cannot be read ({reason}); delete it and run again")
