"""The model card: what was done to the checkpoint, what it was worth, what is not promised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from surgeon.edit import Edit
from surgeon.findings import AVERAGES
from surgeon.record import PARTS, Report
from surgeon.subject import Subject

LIMITS = (
    "The figures hold for the report rows, and images like them; nothing is known about others.",
    "Only the named biases were looked at. Removing one can leave, or strengthen, another.",
    "The erasure acts between the pooled features and the head: the pooled features themselves "
    "still carry the bias, and whoever reads them instead of the logits can find it.",
    "A probe that fails to read a bias is evidence, not proof, that nothing can.",
)
"""What no report promises."""


def model_card(subject: Subject, edit: Edit, report: Report | None, *, sliced: bool = False) -> str:
    """Render the card as Markdown with the hub's metadata header.

    Args:
        subject: The base.
        edit: What was carried out.
        report: The measurements; without them the card holds no figures.
        sliced: Whether tensors are smaller than the base's.
    """
    parts = [
        _header(subject),
        f"# {subject.architecture.name}, edited by surgeon\n",
        _deed(subject, edit, sliced=sliced),
    ]
    if report is not None:
        parts += [_figures(report), _groups(report), _use(report)]
    return "\n".join([*parts, _loading(subject, sliced=sliced), _limits(), _licence(subject)])


def _use(report: Report) -> str:
    columns = ", ".join(f"`{column}`" for column in report.operations[0].audit["biases"])
    return (
        "## Intended use\n\nWhere the base is used, on images like the labelled ones, if its "
        f"answers must not lean on {columns}. Measure it on your own rows before you rely on it: "
        "`surgeon audit`.\n"
    )


def _limits() -> str:
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in LIMITS), ""])


def _licence(subject: Subject) -> str:
    known = _licence_of(subject)
    named = f"`{known}`" if known else "not named in its `config.json`, so ask its owner"
    return f"## Licence\n\nThat of the base: {named}.\n"


def _licence_of(subject: Subject) -> str | None:
    """Return the licence that the base's own config names."""
    own = subject.config.get("pretrained_cfg") or {}
    found = subject.config.get("license") or own.get("license")
    return found if isinstance(found, str) else None


def _header(subject: Subject) -> str:
    library = subject.architecture.library
    lines = ["---", "pipeline_tag: image-classification", "tags:", "- image-classification"]
    if library in ("timm", "transformers"):
        lines += [f"- {library}", f"library_name: {library}"]
    if subject.hub_id:
        lines += [f"base_model: {json.dumps(subject.hub_id)}"]
    licence = _licence_of(subject)
    if licence:
        lines += [f"license: {json.dumps(licence)}"]
    return "\n".join([*lines, "---", ""])


def _deed(subject: Subject, edit: Edit, *, sliced: bool) -> str:
    named = {
        "masks": "a mask over single weights",
        "units": "a mask over whole units",
        "buffers": "recalibrated BatchNorm statistics",
        "updates": "replaced tensors",
        "erasure": "a closed-form erasure folded into the head",
    }
    held = [text for part, text in named.items() if getattr(edit, part)]
    shapes = (
        "Units that are off were cut out, so tensors are smaller than the base's and the network "
        "is loaded as below"
        if sliced
        else "Every tensor keeps its name and shape"
    )
    return (
        f"Base: `{subject.architecture}`, sha256 `{subject.sha256}`. "
        f"Method `{edit.method}`: {', '.join(held) or 'no change'}. "
        f"{shapes}; `edit.safetensors` is the change alone.\n"
    )


def _figures(report: Report) -> str:
    rows = report.data
    lines = [
        f"**Verdict: {report.verdict.word}** ({report.verdict.reason}). "
        f"{rows['fit']} rows fitted, {rows['select']} chose, {rows['report']} measured.\n",
        "| operation | worst group | balanced | average | sparsity |",
        "| --- | --- | --- | --- | --- |",
    ]
    for operation in report.operations:
        audit = operation.audit
        figures = [percent(audit[name]) for name in AVERAGES]
        lines.append(
            f"| {operation.name} | {' | '.join(figures)} | {percent(operation.sparsity.gated)} |"
        )
    return "\n".join([*lines, "", "All figures in percent.", ""])


def _groups(report: Report) -> str:
    before, after = report.operations[0].audit["groups"], report.operations[-1].audit["groups"]
    heads = ("group", *PARTS, "before", "after")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for old, new, counts in zip(before, after, report.counts, strict=True):
        rows = [str(counts[part]) for part in PARTS]
        if any(counts.values()):
            lines.append(f"| {' | '.join([group_name(old), *rows, spread(old), spread(new)])} |")
    told = "Rows of each part, and accuracy on report rows in percent with its 95 % interval."
    empty = sum(not any(counts.values()) for counts in report.counts)
    if empty:
        told += f" {empty} groups have no rows."
    return "\n".join([*lines, "", told, ""])


def _loading(subject: Subject, *, sliced: bool) -> str:
    architecture = subject.architecture
    if sliced:
        own = architecture.library == "factory"
        code = [
            "# In this folder; needs timm or torchvision, and safetensors, but not surgeon.",
            "from load_sliced import load",
            f"net = load(net={architecture.name.rpartition(':')[2]}())" if own else "net = load()",
        ]
    elif architecture.library == "transformers":
        code = [
            "from transformers import AutoModelForImageClassification",
            'net = AutoModelForImageClassification.from_pretrained("PATH_OF_THIS_FOLDER").eval()',
        ]
    elif architecture.library == "timm":
        code = [
            "import timm",
            'net = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()',
        ]
    else:
        name = architecture.name
        arguments = {"num_classes": architecture.num_classes, **architecture.model_args}
        if architecture.library == "torchvision":
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            build = ["import torchvision", f'net = torchvision.models.get_model("{name}", {given})']
        else:
            module, _, function = name.partition(":")
            given = ", ".join(f"{k}={v!r}" for k, v in architecture.model_args.items())
            build = [f"from {module} import {function}", f"net = {function}({given})"]
        code = [
            "from safetensors.torch import load_file",
            *build,
            'net.load_state_dict(load_file("model.safetensors"))',
            "net.eval()",
        ]
    return "\n".join(["## Loading", "", "```python", *code, "```", ""])


def percent(value: float | None) -> str:
    """Write a fraction in percent with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def group_name(row: Mapping[str, Any]) -> str:
    """Spell out a group of a report: `target, column value, ...`."""
    return ", ".join(
        [row["target"], *(f"{column} {value}" for column, value in row["bias"].items())]
    )


def points(change: Mapping[str, float]) -> str:
    """Write a difference of a verdict in points, with its interval."""
    low, high = percent(change["low"]), percent(change["high"])
    return f"{100 * change['difference']:+.1f} points (95 % interval {low} to {high})"


def spread(row: Mapping[str, Any]) -> str:
    """Write a group's accuracy with its interval in percent, or a dash where it has no rows."""
    if not row["n"]:
        return "-"
    return f"{percent(row['accuracy'])} ({percent(row['low'])} to {percent(row['high'])})"
