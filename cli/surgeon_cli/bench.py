"""`surgeon bench`: measurements that anyone can repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import print_json, result_console
from surgeon_cli._errors import reports_errors

bench = typer.Typer(no_args_is_help=True, help="Repeat the measurements of the documentation.")


@bench.command()
@reports_errors
def step(
    pairs: Annotated[int, typer.Option(min=1, help="Alternating pairs per figure.")] = 30,
    device: opt.Device = "cpu",
    as_json: opt.Json = False,
) -> None:
    """Time a gate step against an Adam step on all weights."""
    from dataclasses import asdict

    from surgeon.benchmarks.step_time import measure_step_times
    from surgeon.report import render_step_times

    times = [asdict(row) for row in measure_step_times(pairs=pairs, device=device)]
    if as_json:
        print_json({"pairs": pairs, "steps": times})
    else:
        render_step_times(times, result_console())


@bench.command("biased-mnist")
@reports_errors
def biased_mnist(
    rho: Annotated[float, typer.Option(min=0.1, max=1.0, help="Training correlation.")] = 0.99,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for data, networks, results.")] = Path(
        "biased-mnist"
    ),
    as_json: opt.Json = False,
) -> None:
    """Run every operation on Biased MNIST at 14 x 14; needs MNIST under SURGEON_DATA."""
    import sys

    from surgeon.benchmarks.biased_mnist import run_biased_mnist
    from surgeon.report import render_bench

    runs = []
    for seed in range(seeds):
        print(f"rho {rho}, seed {seed}", file=sys.stderr, flush=True)
        runs.append(run_biased_mnist(out, rho=rho, seed=seed))
    if as_json:
        print_json({"rho": rho, "runs": runs})
    else:
        render_bench(runs, result_console())
