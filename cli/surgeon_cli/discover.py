"""`surgeon discover`: guess the bias of labelled images that have no bias labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress, print_json, result_console
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups

if TYPE_CHECKING:
    from surgeon import Discovery


@dataclass(frozen=True, kw_only=True)
class GuessFlags:
    """How to guess."""

    method: Annotated[
        str,
        typer.Option(
            help="voronoi takes the class that a row is mistaken for, clusters divides each class "
            "by its features."
        ),
    ] = "voronoi"
    over: Annotated[
        str,
        typer.Option(
            help="What voronoi looks at: run, a short training run made for it; checkpoint, the "
            "one given; or a folder of checkpoints saved while it was trained."
        ),
    ] = "run"
    clusters: Annotated[int, typer.Option(help="Clusters of each class.")] = 8
    seed: opt.Seed = 0

    def make(self) -> Discovery:
        """Make the discovery that `--method` names."""
        import surgeon

        known = surgeon.DISCOVERIES
        if self.method not in known:
            raise surgeon.OptionError(
                f"--method: found '{self.method}', expected {' or '.join(known)}"
            )
        settings: dict[str, Any] = {"seed": self.seed}
        settings |= {"over": self.over} if self.method == "voronoi" else {"clusters": self.clusters}
        return known[self.method](**settings)


@dataclass(frozen=True, kw_only=True)
class RowsFlags:
    """What the columns of a label file without bias labels are, and how images are read."""

    images: opt.Images = None
    target_col: opt.TargetCol = "target"
    bias_col: Annotated[
        list[str], typer.Option(help="Column of a true bias to compare the guess with; repeatable.")
    ] = field(default_factory=list)
    sixteen_bit: opt.SixteenBit = None
    workers: opt.Workers = None


@reports_errors
@takes_groups
def discover(
    checkpoint: opt.Checkpoint,
    labels: Annotated[
        Path, typer.Option("--labels", help="CSV or TSV with path, target and, if any, split.")
    ],
    guess: GuessFlags,
    rows: RowsFlags,
    network: opt.NetworkFlags,
    compute: opt.ComputeFlags,
    out: Annotated[
        Path | None, typer.Option(help="CSV to write; default: LABELS-bias.csv beside the labels.")
    ] = None,
    force: opt.Force = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Guess the bias of images without bias labels, and write labels that operations take."""
    import surgeon
    from surgeon.report import render_discovery

    where = out or labels.with_name(f"{labels.stem}-bias.csv")
    surgeon.check_labels_out(where, labels, force=force)
    discovery, progress = guess.make(), Progress(quiet=quiet)
    progress.stage(f"reading {checkpoint} and {labels}")
    subject = network.load(checkpoint, compute)
    read, checked = surgeon.read_rows(
        subject,
        labels,
        images=rows.images,
        target_col=rows.target_col,
        bias_cols=rows.bias_col,
        sixteen_bit=rows.sixteen_bit,
        workers=rows.workers,
    )
    progress.stage(f"{discovery.name} on {len(read)} rows")
    found = surgeon.discover(subject, read, checked, discovery)
    root = rows.images or labels.parent
    surgeon.write_labels(where, found, root, force=force)
    document = found.to_json()
    if as_json:
        print_json(document)
        return
    console = result_console()
    render_discovery(document, console)
    console.print(f"written: {where}", soft_wrap=True)
    elsewhere = "" if root.resolve() == where.resolve().parent else f" --images {root}"
    console.print(
        f"next: surgeon prune {checkpoint} --bias-labels {where}{elsewhere}", soft_wrap=True
    )
