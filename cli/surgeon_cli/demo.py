"""`surgeon demo`: the main job on embedded real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress
from surgeon_cli._errors import reports_errors
from surgeon_cli._run import operate_and_export


@reports_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("surgeon-demo"),
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    force: opt.Force = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train a small network that leans on a colour, then prune it as `surgeon prune` does."""
    import surgeon

    where = surgeon.find_device(device)
    progress = Progress(quiet=quiet)
    progress.stage(f"making a biased checkpoint and 897 labelled images in {out}")
    surgeon.make_demo(out, seed=seed, force=force)
    subject = surgeon.load(out / "model.safetensors", device=str(where))
    data = surgeon.read_data(subject, out / "val.csv")
    operate_and_export(
        subject,
        data,
        surgeon.FFW(seed=seed),
        surgeon.Measures(with_finetune=True, seed=seed),
        out / "debiased",
        command="surgeon demo",
        force=force,
        progress=progress,
        as_json=as_json,
    )
    if not as_json:
        print(
            f"next: surgeon prune {out}/model.safetensors --bias-labels {out}/val.csv "
            f"--mode structured --out {out}/structured"
        )
