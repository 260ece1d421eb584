"""`surgeon audit`: measure a checkpoint by group, and how far its bias can be read."""

from __future__ import annotations

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress, print_json, result_console
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups


@reports_errors
@takes_groups
def audit(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    rows: opt.RowFlags,
    measures: opt.MeasureFlags,
    network: opt.NetworkFlags,
    compute: opt.ComputeFlags,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure a checkpoint on the report rows: groups, averages, gaps, leakage."""
    import surgeon
    from surgeon.report import render_audit

    progress = Progress(quiet=quiet)
    progress.stage(f"reading {checkpoint} and {bias_labels}")
    subject = network.load(checkpoint, compute)
    data = rows.read(subject, bias_labels)
    found = surgeon.audit(subject, data, measures=measures.read(data)).to_json()
    notes = [f"note: {note}" for note in (*subject.notes, *data.labels.notes)]
    if as_json:
        print_json(found)
        for note in notes:
            progress.stage(note)
        return
    console = result_console()
    render_audit(found, console)
    for note in notes:
        console.print(note)
