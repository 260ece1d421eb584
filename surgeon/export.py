"""Write the result: a checkpoint that loads without surgeon, the edit, and the record."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from surgeon import load_sliced
from surgeon.architecture import LIBRARIES
from surgeon.card import model_card
from surgeon.checkpoint import file_sha256, write_safetensors
from surgeon.edit import Edit
from surgeon.errors import ArtefactError
from surgeon.formats import Formats, write_programs
from surgeon.loading import load
from surgeon.record import Report
from surgeon.slicing.cut import Cut, cut, units_off
from surgeon.subject import Subject, as_saved_
from surgeon.surgery import apply, prove
from surgeon.whole import fresh_directory

RECORD_VERSION = 1
# Images whose logits travel with the export.
PROBE_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from; goes verbatim into `surgeon.json`."""

    command: str
    """The command, without paths."""
    config: Mapping[str, Any]
    """The method's settings."""
    seed: int | None


def export(
    subject: Subject,
    edit: Edit,
    out: str | Path,
    *,
    images: Tensor | None = None,
    report: Report | None = None,
    provenance: Provenance | None = None,
    formats: Formats | None = None,
    force: bool = False,
) -> Path:
    """Write a folder with the edited checkpoint, its config, the edit, the record and a card.

    The written model is read back in a fresh load and its logits compared with the gated network
    before the folder is put in place; on any failure nothing is left.

    Args:
        subject: The base.
        edit: What to carry out.
        out: Folder to make.
        images: `[n, 3, H, W]` preprocessed images to prove the export on; their logits are kept
            as `report_logits.safetensors`. None proves it on seeded noise and keeps nothing.
        report: The measurements; adds `report.json`, `layers.csv`, `groups.csv`, and images.
        provenance: Command, settings and seed.
        formats: Whether the checkpoint is sliced, and what else is written.
        force: Replace an earlier result.

    Returns:
        The folder.

    Raises:
        ArtefactError: The folder exists or cannot be written, or the read-back differs.
        IncompatibleError: The network cannot be sliced, or traced into a program.
    """
    out, formats = Path(out), formats or Formats()
    base = subject.to("cpu")
    folded = apply(base, edit)
    made = None
    if formats.slice:
        made = cut(folded, units_off(folded, edit), round_to=formats.round_to)
    shipped = made.subject if made else folded
    with fresh_directory(out, force=force) as folder:
        edit.save(folder / "edit.safetensors")
        edit_sha256 = file_sha256(folder / "edit.safetensors")
        metadata = {
            "format": "pt",
            "surgeon.base_sha256": subject.sha256,
            "surgeon.edit_sha256": edit_sha256,
            "surgeon.method": edit.method,
        }
        sliced = {"surgeon.sliced": "true"} if shipped.attributes else {}
        _write_model(folder, shipped, {**metadata, **sliced})
        record = _record(subject, folder, edit_sha256, provenance)
        if shipped.attributes:
            record["slice"] = {"attributes": shipped.attributes, **(made.to_json() if made else {})}
            shutil.copyfile(load_sliced.__file__, folder / "load_sliced.py")
        write_json(folder / "surgeon.json", record)
        _prove(base, edit, shipped, folder, images)
        if formats.full:
            (folder / "full").mkdir()
            _write_model(folder / "full", folded, metadata)
            _prove(base, edit, folded, folder / "full", images)
        write_programs(shipped, formats, folder)
        if report is not None:
            _write_report(folder, report, made)
        card = model_card(subject, edit, report, sliced=bool(shipped.attributes))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return out


def _record(
    subject: Subject, folder: Path, edit_sha256: str, provenance: Provenance | None
) -> dict[str, Any]:
    """Say what the files in a folder are, and where they come from."""
    return {
        "version": RECORD_VERSION,
        "command": provenance.command if provenance else "",
        "base": base_record(subject),
        "edit_sha256": edit_sha256,
        "model_sha256": file_sha256(folder / "model.safetensors"),
        "config": dict(provenance.config) if provenance else {},
        "seed": provenance.seed if provenance else None,
        "environment": environment(subject),
    }


def _write_model(folder: Path, subject: Subject, metadata: Mapping[str, str]) -> None:
    write_safetensors(folder / "model.safetensors", subject.tensors(), metadata)
    config = export_config(subject)
    processor = config.pop("preprocessor", None)
    write_json(folder / "config.json", config)
    if processor:
        write_json(folder / "preprocessor_config.json", processor)


def _prove(
    base: Subject, edit: Edit, shipped: Subject, folder: Path, images: Tensor | None
) -> None:
    architecture = base.architecture
    named = architecture.library in LIBRARIES
    again = load(
        folder / "model.safetensors",
        arch=str(architecture) if named else None,
        factory=architecture.name if architecture.library == "factory" else None,
        model_kwargs=None if architecture.library == "transformers" else architecture.model_args,
    )
    if again.fingerprint() != shipped.fingerprint():
        raise ArtefactError(
            f"{folder.parent}: model.safetensors reads back with other values than were written; "
            "check the disk"
        )
    if images is None:
        size = (8, *base.preprocessing.input_size)
        prove(base, edit, again, torch.randn(size, generator=torch.Generator().manual_seed(0)))
        return
    probe = images[:PROBE_ROWS].cpu()
    prove(base, edit, again, probe)
    as_saved_(again.net)
    with torch.no_grad():
        logits = again.forward(probe)[1]
    write_safetensors(folder / "report_logits.safetensors", {"logits": logits}, {"format": "pt"})


def base_record(subject: Subject) -> dict[str, Any]:
    """Return the base as `surgeon.json` and `report.json` name it."""
    return {
        "sha256": subject.sha256,
        "architecture": str(subject.architecture),
        "num_classes": subject.num_classes,
    }


def environment(subject: Subject) -> dict[str, str]:
    """Return the versions and the device a result was computed with."""
    return {
        "python": platform.python_version(),
        "surgeon": version("debias-surgeon"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": str(subject.device),
        "dtype": str(subject.amp_dtype or torch.float32).removeprefix("torch."),
    }


def export_config(subject: Subject) -> dict[str, Any]:
    """Return `config.json`: timm's own layout for a timm network; the input's keys are kept.

    That of transformers stays as it is, with its `preprocessor_config.json` under `preprocessor`.
    """
    architecture, config = subject.architecture, dict(subject.config)
    if architecture.library == "transformers":
        return config
    config["architecture"] = architecture.name
    config["num_classes"] = subject.num_classes
    if subject.label_names:
        config["label_names"] = list(subject.label_names)
    if architecture.model_args:
        config["model_args"] = dict(architecture.model_args)
    if architecture.library != "timm":
        config["library"] = architecture.library
        config["preprocessing"] = subject.preprocessing.to_config()
        return config
    config["num_features"] = subject.num_features
    pool = getattr(subject.net, "global_pool", None)
    if isinstance(pool, str):
        config.setdefault("global_pool", pool)
    own = getattr(subject.net, "pretrained_cfg", None) or {}
    kept = {k: own[k] for k in ("first_conv", "classifier", "fixed_input_size") if k in own}
    config["pretrained_cfg"] = {
        **kept,
        **config.get("pretrained_cfg", {}),
        **subject.preprocessing.to_config(),
        "num_classes": subject.num_classes,
    }
    return config


def write_json(path: Path, document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file with sorted keys; NaN is a bug and raises."""
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def as_json(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as it reads back from its JSON file; NaN is a bug and raises."""
    return json.loads(json.dumps(document, allow_nan=False))


def _write_report(folder: Path, report: Report, made: Cut | None) -> None:
    write_json(folder / "report.json", report.to_json())
    if report.sweep:
        write_json(folder / "sweep.json", [dict(record) for record in report.sweep])
    if report.views:
        (folder / "report" / "examples").mkdir(parents=True)
        for name, picture in report.views.pictures().items():
            (folder / "report" / name).write_bytes(picture)
    layers = [asdict(layer) for layer in report.layers]
    if made:
        layers = [{**layer, **made.layer(layer["name"], layer["units"])} for layer in layers]
    groups = [
        {"operation": operation.name, **_flat_group(row)}
        for operation in report.operations
        for row in operation.audit["groups"]
    ]
    for name, rows in (("layers.csv", layers), ("groups.csv", groups)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _flat_group(row: Mapping[str, Any]) -> dict[str, Any]:
    biases = {f"bias.{column}": value for column, value in row["bias"].items()}
    return {
        "target": row["target"],
        **biases,
        **{k: v for k, v in row.items() if k not in ("target", "bias")},
    }
