"""`surgeon compare`: every operation on the same split, and the checkpoint to ship."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress, print_json, result_console
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups
from surgeon_cli._run import beside, check_method, make_method

if TYPE_CHECKING:
    from surgeon import Data, Method, Subject

# In the order of the table.
_METHODS = (
    *("leace", "dfr", "magnitude", "random", "gba-mask", "ffw", "finetune", "group-dro", "vcba"),
    *("clusterfix", "gba", "gba-n", "gba-c", "adversarial", "csad", "csad-content", "csad-struct"),
)
_INTERRUPTED = 3


@dataclass(frozen=True, kw_only=True)
class ContestFlags:
    """What takes part, and how much of it at once."""

    method: Annotated[
        list[str], typer.Option(help="Only this operation; repeatable. Default: all of them.")
    ] = field(default_factory=list)
    jobs: Annotated[
        int, typer.Option(min=1, help="Operations at the same time, each in its own process.")
    ] = 1

    def make(self, seed: int) -> dict[str, Method]:
        """Make the methods, with their default settings."""
        for name in self.method:
            check_method(name, _METHODS)
        # Nothing about a closed form is random.
        settings = {name: {} if name == "leace" else {"seed": seed} for name in _METHODS}
        chosen = [name for name in _METHODS if name in (self.method or _METHODS)]
        return {name: make_method(name, _METHODS, **settings[name]) for name in chosen}


@reports_errors
@takes_groups
def compare(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    contest: ContestFlags,
    rows: opt.RowFlags,
    measures: opt.MeasureFlags,
    network: opt.NetworkFlags,
    compute: opt.ComputeFlags,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to make or go on with; default: CHECKPOINT-compared."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Start anew where there is a comparison.")] = False,
    explain: opt.Explain = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fit and measure every operation on the same rows, and name the checkpoint to ship."""
    import surgeon
    from surgeon.report import render_comparison, write_comparison, write_page

    where = out or beside(checkpoint, "compared")
    methods, progress = contest.make(measures.seed), Progress(quiet=quiet)
    progress.stage(f"reading {checkpoint} and {bias_labels}")
    read = partial(_read, checkpoint, bias_labels, network, compute, rows)
    subject, data = read()
    try:
        found = surgeon.compare(
            subject,
            data,
            methods,
            where,
            measures=measures.read(data),
            jobs=contest.jobs,
            read=read,
            force=force,
            explain=explain,
            announce=progress.stage,
        )
    except KeyboardInterrupt:
        progress.stage("interrupted: finished operations are kept; run the command again")
        raise typer.Exit(_INTERRUPTED) from None
    document = found.to_json()
    write_comparison(document, where)
    if found.folder:
        write_page(found.folder)
    if as_json:
        print_json(document)
        return
    console = result_console()
    render_comparison(document, console)
    console.print(f"written: {found.folder or where}", soft_wrap=True)


def _read(
    checkpoint: Path,
    bias_labels: Path,
    network: opt.NetworkFlags,
    compute: opt.ComputeFlags,
    rows: opt.RowFlags,
) -> tuple[Subject, Data]:
    subject = network.load(checkpoint, compute)
    return subject, rows.read(subject, bias_labels)
