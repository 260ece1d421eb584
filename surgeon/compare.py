"""Several operations on one split: each fitted once, all measured alike, one chosen to ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surgeon.comparison_folder import ComparisonFolder, settings_of, stamp_of
from surgeon.crew import Failure, run_tasks
from surgeon.data import Data
from surgeon.edit import Edit
from surgeon.entry import Bench, Task, correct_rows, fit_and_measure
from surgeon.errors import OptionError, SurgeonError
from surgeon.export import PROBE_ROWS, Provenance, base_record, export
from surgeon.gradcam import find_feature_map
from surgeon.measure import Measures, Ruler
from surgeon.methods import FFW, Method
from surgeon.methods.controls import Control
from surgeon.operate import Announce, check_groups, config_of, data_record, group_counts
from surgeon.options import check_least
from surgeon.record import Operation, Report
from surgeon.subject import Subject
from surgeon.surgery import Sparsity, layer_rows
from surgeon.verdict import Verdict, judge
from surgeon.views import view

Read = Callable[[], tuple[Subject, Data]]
"""Reads checkpoint and labels."""

VANILLA = "vanilla"
_SHIP = "ship"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Operations side by side."""

    operations: tuple[Operation, ...]
    """Vanilla first, then in the order of the methods, each as exported last."""
    verdicts: Mapping[str, Verdict]
    """Row to verdict against vanilla; means of draws have none."""
    select_loss: Mapping[str, float]
    """Row to cross-entropy on select rows, nats, groups equal, of all that can be shipped."""
    failed: Mapping[str, str]
    """Method to the reason why it has no row."""
    ship: str
    """Row of the checkpoint to ship: the one of least loss on select rows."""
    why: str
    folder: Path | None
    """Where it lies; None where the given checkpoint is the one to ship."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as `comparison.json` holds it."""
        verdicts = {name: verdict.to_json() for name, verdict in self.verdicts.items()}
        rows = [
            {
                **row.to_json(),
                "verdict": verdicts.get(row.name),
                "select_loss": self.select_loss.get(row.name),
            }
            for row in self.operations
        ]
        folder = self.folder.name if self.folder else None
        ship = {"name": self.ship, "why": self.why, "folder": folder}
        return {"operations": rows, "failed": dict(self.failed), "ship": ship}


def compare(
    subject: Subject,
    data: Data,
    methods: Mapping[str, Method],
    out: Path,
    *,
    measures: Measures | None = None,
    jobs: int = 1,
    read: Read | None = None,
    force: bool = False,
    explain: bool = False,
    announce: Announce | None = None,
) -> Comparison:
    """Fit and measure operations on the same split, choose one by select rows, and export it.

    `magnitude` and `random` match the sparsity that `ffw` found in each layer, where it is among
    the methods and found a mask. What an interrupted comparison of the same checkpoint, rows,
    measures and settings has finished is used again; a method that failed is tried again.

    Args:
        subject: The network.
        data: Labelled rows.
        methods: Registry key to method.
        out: Folder for `rows`, `edits`, the chosen checkpoint in `ship`, and `comparison.json`.
        measures: How to measure; MLP probes are run for every row but draws of random masks.
        jobs: Operations at the same time; with several, each has a process of its own, and a script
            calls this under `if __name__ == "__main__":`.
        read: Reads subject and data again in such a process, to which it is pickled.
        force: Start anew where the folder holds a comparison.
        explain: Draw where the chosen network looks in the images of its report.
        announce: Takes one line per operation.

    Returns:
        The rows, the verdicts and the choice.

    Raises:
        ArtefactError: The folder is not a comparison, or one of something else.
        OptionError: Several jobs, and no `read`; or `explain`, and captum is not installed.
        IncompatibleError: `explain`, and the network has no feature map.
        SurgeonError: The network as it is cannot be measured.
    """
    check_least("jobs", jobs, 1)
    measures = replace(measures or Measures(), mlp_every_row=True)
    check_groups(data, measures.min_group)
    if jobs > 1 and read is None:
        raise OptionError(f"--jobs: found {jobs}, expected 1 where nothing reads the data again")
    # Now, so that what could not be drawn in the end is refused before anything is fitted.
    where = find_feature_map(subject) if explain else None
    again = read if jobs > 1 and read else lambda: (subject, data)
    folder = ComparisonFolder(out, stamp_of(subject, data, measures))
    folder.open(force=force)
    make = partial(_make_bench, again, measures, folder.edits)
    contest = _Contest(folder, make, jobs, announce or (lambda _: None))
    controls = {name: m for name, m in methods.items() if isinstance(m, Control)}
    # The longest first, so that no process is left alone with it at the end.
    others = sorted((n for n in methods if n not in controls), key=lambda n: n != FFW.name)
    contest.measure({VANILLA: None, **{name: methods[name] for name in others}})
    if VANILLA in contest.failed:
        raise SurgeonError(f"{VANILLA}: {contest.failed[VANILLA]}")
    searched = folder.edit(FFW.name) if FFW.name in contest.found else None
    like = searched if searched and searched.masked else None
    contest.measure({name: replace(method, like=like) for name, method in controls.items()})
    found = {name: contest.found[name] for name in (VANILLA, *methods) if name in contest.found}
    comparison = _judged(data, measures, found, contest.failed)
    chosen = next(n for n in found if _exported(found[n])["name"] == comparison.ship)
    if chosen != VANILLA:
        edit, own = folder.edit(chosen), found[chosen]
        report = _report(subject, data, methods[chosen], edit, own["history"], comparison)
        right = (correct_rows(found[VANILLA], 0), correct_rows(own, len(own["operations"]) - 1))
        if right[0] is not None and right[1] is not None:
            views = view(subject, data, edit, right[0], right[1], where=where)
            report = replace(report, views=views)
        path = _ship(subject, data, edit, out / _SHIP, report, measures.seed)
        comparison = replace(comparison, folder=path)
    folder.finish(comparison.to_json())
    return comparison


def _make_bench(read: Read, measures: Measures, edits: Path) -> Bench:
    return Bench(Ruler(*read(), measures), edits)


@dataclass(frozen=True, eq=False)
class _Contest:
    """The operations that take part: what is found of each, or why it failed."""

    folder: ComparisonFolder
    make: Callable[[], Bench]
    jobs: int
    say: Announce
    found: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self, wanted: Mapping[str, Method | None]) -> None:
        """Measure methods, or use again what is kept of them."""
        tasks = []
        for name, method in wanted.items():
            known = self.folder.read(name, settings_of(method))
            if known is None:
                tasks.append(Task(name, method))
            else:
                self.found[name] = known
                self.say(f"{name}: used again")
        for task, result in run_tasks(tasks, self.make, fit_and_measure, jobs=self.jobs):
            if isinstance(result, Failure):
                self.failed[task.name] = result.why
                self.say(f"{task.name}: failed: {result.why}")
            else:
                self.found[task.name] = result
                self.folder.keep(task.name, settings_of(task.method), result)
                self.say(f"{task.name}: fitted and measured")


def _exported(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return document["operations"][-1]


def _judged(
    data: Data,
    measures: Measures,
    found: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
) -> Comparison:
    """Judge every row against vanilla, and choose one by its loss on select rows."""
    vanilla, groups = found[VANILLA], data.report.groups
    right = correct_rows(vanilla, 0)
    assert right is not None
    biases = _exported(vanilla)["audit"]["biases"]
    fitted = [biases[groups.columns[k]] for k in groups.fitted]
    rows, verdicts = [], {}
    for document in found.values():
        for number, row in enumerate(document["operations"]):
            rows.append(Operation(**{**row, "sparsity": Sparsity(**row["sparsity"])}))
            correct = correct_rows(document, number)
            if document is vanilla or correct is None:
                continue
            verdicts[row["name"]] = judge(
                right,
                correct,
                groups.index,
                groups.num_groups,
                min_group=measures.min_group,
                gap_intervals=[bias["gap_interval"] for bias in fitted],
                leaks=[leak for bias in fitted for leak in _logit_leaks(bias)],
                aligned_by=vanilla["aligned_by"],
                seed=measures.seed,
            )
    losses = {
        _exported(document)["name"]: document["select_loss"]
        for document in found.values()
        if document["select_loss"] is not None
    }
    ship = min(losses, key=lambda name: losses[name])
    why = f"least loss on select rows: {losses[ship]:.3f} nats"
    if ship != VANILLA:
        why += f", {losses[VANILLA]:.3f} as it was given"
    return Comparison(tuple(rows), verdicts, losses, dict(failed), ship, why, None)


def _logit_leaks(bias: Mapping[str, Any]) -> list[tuple[float, float, float]]:
    """Return low, high and chance of each probe of the logits that read anything."""
    spans = bias["leakage_intervals"]["logits"].values()
    return [(span[0], span[1], bias["chance"]) for span in spans if span]


def _report(
    subject: Subject,
    data: Data,
    method: Method,
    edit: Edit,
    history: Sequence[Mapping[str, Any]],
    comparison: Comparison,
) -> Report:
    """Make the report of the chosen operation, beside all others."""
    others = [row for row in comparison.operations if row.name != comparison.ship]
    (own,) = (row for row in comparison.operations if row.name == comparison.ship)
    return Report(
        base=base_record(subject),
        data=data_record(data),
        counts=group_counts(data),
        config=config_of(method),
        operations=(*others, own),
        verdict=comparison.verdicts[comparison.ship],
        layers=tuple(layer_rows(subject, edit)),
        history=history,
        seconds=own.seconds,
        notes=(*subject.notes, *data.labels.notes, f"chosen among others: {comparison.why}"),
    )


def _ship(subject: Subject, data: Data, edit: Edit, out: Path, report: Report, seed: int) -> Path:
    """Export the chosen operation with the report of all."""
    return export(
        subject,
        edit,
        out,
        images=data.report.batch(torch.arange(min(PROBE_ROWS, len(data.report)))),
        report=report,
        provenance=Provenance(command="surgeon compare", config=report.config, seed=seed),
        force=True,
    )
