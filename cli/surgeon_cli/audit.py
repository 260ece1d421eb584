"""`surgeon audit`: measure a checkpoint by group, and how far its bias can be read."""

from __future__ import annotations

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress, print_json, result_console
from surgeon_cli._errors import reports_errors


@reports_errors
def audit(
    checkpoint: opt.Checkpoint,
    bias_labels: opt.BiasLabels,
    images: opt.Images = None,
    target_col: opt.TargetCol = "target",
    bias_col: opt.BiasCol = ["bias"],  # noqa: B006
    audit_col: opt.AuditCol = [],  # noqa: B006
    sixteen_bit: opt.SixteenBit = None,
    aligned: opt.Aligned = [],  # noqa: B006
    train_counts: opt.TrainCounts = None,
    min_group: opt.MinGroup = 10,
    arch: opt.Arch = None,
    factory: opt.Factory = None,
    model_kwargs: opt.ModelKwargs = [],  # noqa: B006
    input_size: opt.InputSize = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    interpolation: opt.Interpolation = None,
    crop_pct: opt.CropPct = None,
    crop_mode: opt.CropMode = None,
    device: opt.Device = "auto",
    amp: opt.Amp = None,
    amp_dtype: opt.AmpDtype = "bfloat16",
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure a checkpoint on the report rows: groups, averages, gaps, leakage."""
    options = dict(locals())
    import surgeon
    from surgeon.report import render_audit

    progress = Progress(quiet=quiet)
    progress.stage(f"reading {checkpoint} and {bias_labels}")
    subject = opt.load_subject(checkpoint, options)
    data = opt.load_data(subject, bias_labels, options)
    found = surgeon.audit(subject, data, measures=opt.read_measures(data, options)).to_json()
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
