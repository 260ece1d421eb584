"""Files of a benchmark run: written whole or not at all, named after what they hold."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from surgeon.benchmarks.protocol import Setting
from surgeon.errors import ArtefactError
from surgeon.whole import replacing

VERSION = 1
_KEYS = (
    *("version", "setting", "operation", "config", "source", "dropped", "rows", "training"),
    *("operations", "verdict", "against_dfr"),
)


def setting_name(setting: Setting, epochs: int | None = None) -> str:
    """Name a setting, with all that differs from the benchmark's own choice.

    Args:
        setting: The cell.
        epochs: The cap on epochs, if there is one.

    Returns:
        For example `biased-mnist-0.99-seed-0-n300`; fit for a file's name on every system.
    """
    parts = [
        setting.benchmark,
        None if setting.rho is None else repr(float(setting.rho)),
        f"seed-{setting.seed}",
        None if setting.scale == "small" else setting.scale,
        None if setting.rows is None else f"n{setting.rows}",
        None if setting.label_rho is None else f"labels{float(setting.label_rho)!r}",
        setting.discovery,
        None if epochs is None else f"epochs{epochs}",
        # Last, and without a hyphen of its own, so that it cannot pass for another part.
        None if setting.net is None else quote(setting.net, safe="").replace("-", "%2D"),
    ]
    return "-".join(part for part in parts if part is not None)


def result_path(out: Path, setting: Setting, operation: str, epochs: int | None = None) -> Path:
    """Return where the result of one operation in one setting lies."""
    return out / "results" / f"{setting_name(setting, epochs)}-{operation}.json"


def write_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write a result: one line per key, and per row of a list of objects; NaN raises."""

    def line(value: Any) -> str:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)

    def block(value: Any) -> str:
        if not (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            return line(value)
        return "[\n    " + ",\n    ".join(map(line, value)) + "\n  ]"

    body = ",\n".join(f"  {line(key)}: {block(value)}" for key, value in sorted(document.items()))
    with replacing(path) as temporary:
        temporary.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    """Read one result.

    Raises:
        ArtefactError: It is damaged, or not a result.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path}: cannot be read ({error}); delete it and run the benchmark again"
        ) from error
    if isinstance(document, dict) and isinstance(document.get("setting"), dict):
        document["setting"].setdefault("discovery", None)  # older than this field
    names = set(setting_json(Setting(benchmark="", seed=0), None))
    if not (
        isinstance(document, dict)
        and set(_KEYS) <= set(document)
        and isinstance(document["setting"], dict)
        and names <= set(document["setting"])
        and document["operations"]
    ):
        raise ArtefactError(f"{path}: is not a result of surgeon bench; move it elsewhere")
    if document["version"] != VERSION:
        raise ArtefactError(
            f"{path}: found version {document['version']}, expected {VERSION}; run it again"
        )
    return document


def read_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Read every result in some folders.

    Args:
        folders: Each the `--out` of a run, or a folder of result files.

    Returns:
        The results in the order of the folders and file names.

    Raises:
        ArtefactError: A folder holds none, a file is not a result, or two are of one run.
    """
    found: dict[tuple[str, str], Path] = {}
    results = []
    for folder in folders:
        inner = folder / "results"
        paths = sorted((inner if inner.is_dir() else folder).glob("*.json"))
        if not paths:
            raise ArtefactError(f"{folder}: no results in it; expected *.json of surgeon bench")
        for path in paths:
            document = read_result(path)
            key = (json.dumps(document["setting"], sort_keys=True), document["operation"])
            if key in found:
                raise ArtefactError(
                    f"{path}: is of the same setting and operation as {found[key]}; remove one"
                )
            found[key] = path
            results.append(document)
    return results


def setting_json(setting: Setting, epochs: int | None) -> dict[str, Any]:
    """Return a setting as a result holds it, the cap on epochs included."""
    return {f.name: getattr(setting, f.name) for f in fields(setting)} | {"epochs": epochs}


def code_commit() -> str | None:
    """Name the commit of the checkout that surgeon runs from.

    Returns:
        The hash, with `-dirty` appended if the package was changed since; None where surgeon is
        installed without its history, or git is not there.
    """
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return None
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", ".") else commit
    except (OSError, subprocess.CalledProcessError):
        return None
