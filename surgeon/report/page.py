"""The report as a page: one file that needs no network, no script and no server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.card import LIMITS, group_name, points
from surgeon.findings import CLAIM_ROWS
from surgeon.report.charts import (
    Chart,
    Grid,
    feature_chart,
    group_chart,
    history_chart,
    layer_charts,
    leakage_charts,
    operation_grid,
    sparsity_chart,
    sweep_chart,
)
from surgeon.report.html import data_url, read_json, render
from surgeon.whole import replacing

_KINDS = {
    "fixed": "right only after",
    "broken": "right only before",
    "wrong": "wrong before and after",
}


def write_page(folder: Path) -> Path:
    """Write `report/index.html` of a finished result, and its charts as SVG beside it.

    Every number comes from `report.json`, `sweep.json` and `surgeon.json` of the folder, every
    image of a row from `report/examples`.

    Returns:
        The page.

    Raises:
        ArtefactError: The folder holds no measurements, or cannot be written.
    """
    report, record = read_json(folder / "report.json"), read_json(folder / "surgeon.json")
    path = folder / "sweep.json"
    sweep = read_json(path) if path.is_file() else []
    charts = _charts(report, sweep)
    place = folder / "report"
    html = render(
        "page.html",
        name=folder.resolve().name,
        report=report,
        verdict=_verdict(report),
        charts=charts,
        operations=operation_grid(report["operations"]),
        examples=_examples(report, place),
        explained=any(example.get("looks") for example in report.get("examples", ())),
        facts=_facts(report, record),
        claim_rows=CLAIM_ROWS,
        limits=LIMITS,
    )
    with replacing(place / "index.html") as temporary:
        for old in place.glob("*.svg"):
            old.unlink()
        for chart in charts.every():
            (place / chart.file_name).write_text(chart.svg, encoding="utf-8")
        temporary.write_text(html, encoding="utf-8")
    return place / "index.html"


@dataclass(frozen=True)
class _Charts:
    """The charts of a report, by section."""

    groups: Chart
    leakage: Sequence[Chart]
    layers: Sequence[Chart]
    search: Chart | None
    sweep: Sequence[Chart]
    features: Sequence[Chart]

    def every(self) -> list[Chart]:
        """List all that there are."""
        search = [self.search] if self.search else []
        return [
            *(self.groups, *self.leakage, *self.layers, *search),
            *(*self.sweep, *self.features),
        ]


def _charts(report: Mapping[str, Any], sweep: Sequence[Mapping[str, Any]]) -> _Charts:
    operations = report["operations"]
    before, after = operations[0], operations[-1]
    masked = after["sparsity"]["gated"] is not None
    features = report.get("features")
    columns = [None, *features["bias"]] if features else []
    return _Charts(
        groups=group_chart(before["audit"], after["audit"], after["name"]),
        leakage=[
            chart
            for column in before["audit"]["biases"]
            for chart in leakage_charts(operations, column)
        ],
        layers=layer_charts(report["layers"]) if masked else [],
        search=history_chart(report["history"]),
        sweep=[c for c in (sweep_chart(sweep), sparsity_chart(sweep)) if c] if sweep else [],
        features=[feature_chart(features or {}, column) for column in columns],
    )


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """Put the verdict in one sentence, with the intervals it rests on."""
    verdict = report["verdict"]
    parts = []
    for key, label in (("worst_group", "worst group"), ("balanced", "balanced accuracy")):
        change = verdict[key]
        if change["difference"] is not None:
            parts.append(f"{label} {points(change)}")
    told = "; ".join(parts) or "no group has enough rows to be compared"
    return {
        "word": verdict["word"],
        "sentence": f"{told[0].upper()}{told[1:]}, against {verdict['against']}.",
        "reason": verdict["reason"],
    }


def _examples(report: Mapping[str, Any], place: Path) -> list[dict[str, Any]]:
    """Arrange the images by group and by what became of the row."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for example in report.get("examples", ()):
        if not (place / example["file"]).is_file():
            continue
        kinds = groups.setdefault(group_name(example), {kind: [] for kind in _KINDS})
        named = f"{example['path']}: {example['before']} before, {example['after']} after"
        looks = [
            (place / name, f"Where it looks {when}: {example['path']}")
            for when, name in example.get("looks", {}).items()
        ]
        kinds[example["kind"]].append(
            {
                "pictures": [
                    {"url": data_url("image/png", path.read_bytes()), "alt": alt}
                    for path, alt in ((place / example["file"], named), *looks)
                    if path.is_file()
                ],
                "caption": f"{example['before']} → {example['after']}",
            }
        )
    return [
        {
            "group": group,
            "kinds": [
                {"title": _KINDS[kind], "images": kinds[kind]} for kind in kinds if kinds[kind]
            ],
        }
        for group, kinds in groups.items()
    ]


def _facts(report: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, Grid]]:
    """List configuration, seeds, versions and hashes."""
    base = {f"base {key}": value for key, value in record["base"].items()}
    files = {
        "command": record["command"] or "(from Python)",
        "seed": record["seed"],
        **base,
        "model.safetensors, sha256": record["model_sha256"],
        "edit.safetensors, sha256": record["edit_sha256"],
        "bootstrap seed": report["verdict"]["seed"],
        **{f"rows, {part}": count for part, count in report["data"].items()},
        "seconds": round(report["seconds"], 1),
    }
    named = (
        ("Result", files),
        ("Settings", report["config"]),
        ("Made with", record["environment"]),
    )
    return [
        (title, Grid(("name", "value"), [(key, text) for key, text in _flat(values)]))
        for title, values in named
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{prefix}{key}", "by default" if value is None else text))
    return rows
