"""`surgeon bench`: measurements that anyone can repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import Progress, print_json, result_console
from surgeon_cli._errors import reports_errors

if TYPE_CHECKING:
    from surgeon.benchmarks.protocol import Setting

bench = typer.Typer(no_args_is_help=True, help="Repeat the measurements of the documentation.")

_SEEDS = 3
_INTERRUPTED = 3
_MNIST = "needs MNIST under SURGEON_DATA"
_CIFAR = "needs CIFAR-10 under SURGEON_DATA"
# Name to what it is and the correlation it runs at; None where that cannot be chosen.
_BENCHMARKS: dict[str, tuple[str, float | None]] = {
    "biased-mnist": (f"Digits on coloured grounds; {_MNIST}.", 0.99),
    "multi-color-mnist": (f"Digits on grounds of two colours, two biases; {_MNIST}.", None),
    "multi-color-mnist-left": (f"The same, the left colour alone to be removed; {_MNIST}.", None),
    "colored-mnist": (f"Coloured digits, the LfF palette; {_MNIST}.", 0.95),
    "colored-mnist-lnl": (f"Coloured digits with a spread of colours, as LNL; {_MNIST}.", 1.0),
    "corrupted-cifar10": (f"Photographs with a corruption for each class; {_CIFAR}.", 0.95),
    "cifar10s": (f"Photographs in colour or grey; {_CIFAR}.", 0.95),
    "digits": ("The demo's coloured digits, on small networks of every kind; needs no data.", 0.97),
}

_Rho = Annotated[
    float | None, typer.Option(help="Share of training rows that follow the shortcut.")
]
_Seeds = Annotated[
    int | None, typer.Option(min=1, help=f"Seeds 0, 1, ...; default: {_SEEDS} of them.")
]
_Seed = Annotated[int | None, typer.Option(min=0, help="This seed alone.")]
_Scale = Annotated[str, typer.Option(help="small or paper.")]
_Net = Annotated[str | None, typer.Option(help="A timm network instead of the benchmark's own.")]
_Rows = Annotated[
    int | None, typer.Option(min=1, help="Labelled rows, for fit and select together.")
]
_LabelRho = Annotated[
    float | None,
    typer.Option(help="Share of labelled rows that follow the shortcut; default: unbiased."),
]
_Discovery = Annotated[
    str | None,
    typer.Option(help="voronoi guesses the bias of the labelled rows; default: it is known."),
]
_Operation = Annotated[
    list[str],
    typer.Option(
        help="ffw brings all baselines along; ffw-structured, ffw-refit, ffw-paper, dfr-paper, "
        "vcba-paper, vcba-misaligned, vcba-weights, vcba-all, clusterfix-bpa, or any other method; "
        "repeatable."
    ),
]
_Epochs = Annotated[
    int | None, typer.Option(min=1, help="Epochs of anything at most, for a trial.")
]
_Brief = Annotated[
    bool,
    typer.Option("--brief", help="Of baselines and controls vanilla and dfr alone."),
]
_Mlp = Annotated[bool, typer.Option(help="Run the MLP probes, most of the time of a run.")]
_Out = Annotated[Path, typer.Option(help="Folder for networks, data and results.")]


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


@bench.command()
@reports_errors
def refit(device: opt.Device = "cpu", as_json: opt.Json = False) -> None:
    """Time a refit of the published recipe's bias head, on cached features and through the net."""
    from dataclasses import asdict

    from surgeon.benchmarks.refit_time import measure_refit_time
    from surgeon.report import render_refit_time

    times = asdict(measure_refit_time(device=device))
    if as_json:
        print_json(times)
    else:
        render_refit_time(times, result_console())


@bench.command()
@reports_errors
def slicing(
    arch: Annotated[
        list[str], typer.Option(help="timm name or torchvision:NAME; repeatable; default: many.")
    ] = [],  # noqa: B006
    off: Annotated[float, typer.Option(min=0, max=1, help="Share of every layer's units.")] = 0.3,
    keep: Annotated[
        Path | None, typer.Option(help="Folder to leave sliced networks in, one for each name.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Cut random units out of networks with random weights, and compare logits."""
    from dataclasses import asdict

    from surgeon.benchmarks.slicing import ARCHITECTURES, measure_slicing
    from surgeon.report import render_slicing

    progress, rows = Progress(quiet=False), []
    for name in arch or ARCHITECTURES:
        progress.stage(name)
        own = keep and keep / name.replace(":", "-")
        rows.append(asdict(measure_slicing(name, off=off, keep=own)))
    if as_json:
        print_json({"off": off, "architectures": rows})
    else:
        print(render_slicing(rows))


@bench.command()
@reports_errors
def table(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of results, or of runs; default: bench.", show_default=False),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Show finished results as Markdown; those of runs with --epochs are left out."""
    from surgeon import ArtefactError
    from surgeon.benchmarks.files import read_results

    found = read_results(folders or [Path("bench")])
    whole = [result for result in found if result["setting"]["epochs"] is None]
    if len(whole) < len(found):
        left = len(found) - len(whole)
        Progress(quiet=False).stage(f"note: {left} results of runs with --epochs are left out")
    if not whole:
        raise ArtefactError("every result is of a run with --epochs; run one without")
    _show(whole, as_json)


@bench.command()
@reports_errors
def labels(
    name: Annotated[
        str,
        typer.Argument(
            help="celeba, celeba-makeup, waterbirds, waterbirds-place, or imdb-A-B: A, eb1 or eb2, "
            "to train on, B, eb1, eb2 or test, to report on.",
            show_default=False,
        ),
    ],
    root: Annotated[
        Path, typer.Argument(help="Folder of the data set as published.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="The file; default: ROOT/NAME.csv.")] = None,
) -> None:
    """Write the labels of a published data set as the file that every other command reads."""
    from surgeon import OptionError
    from surgeon.benchmarks.layouts import LAYOUTS, write_label_csv

    if name not in LAYOUTS:
        raise OptionError(f"name: found '{name}', expected one of {', '.join(LAYOUTS)}")
    found, progress = LAYOUTS[name](root), Progress(quiet=False)
    for note in found.notes:
        progress.stage(f"note: {note}")
    path = out or root / f"{name}.csv"
    write_label_csv(found.rows, path)
    print(path)


def _command(name: str, own_rho: float | None) -> Callable[..., None]:
    """Return the command that runs one benchmark."""

    @reports_errors
    def run(
        rho: _Rho = own_rho,
        seeds: _Seeds = None,
        seed: _Seed = None,
        scale: _Scale = "small",
        net: _Net = None,
        rows: _Rows = None,
        label_rho: _LabelRho = None,
        discovery: _Discovery = None,
        operation: _Operation = ["ffw", "ffw-structured", "ffw-paper"],  # noqa: B006
        epochs: _Epochs = None,
        brief: _Brief = False,
        mlp: _Mlp = True,
        device: opt.Device = "cpu",
        out: _Out = Path("bench"),
        as_json: opt.Json = False,
        quiet: opt.Quiet = False,
    ) -> None:
        options = dict(locals())
        from surgeon import OptionError

        if seed is not None and seeds is not None:
            raise OptionError("--seed and --seeds: found both, expected one")
        chosen = [seed] if seed is not None else range(seeds or _SEEDS)
        settings = [_setting(name, number, options) for number in chosen]
        _show(_run(settings, options, Progress(quiet=quiet)), as_json)

    return run


for _name, (_about, _own_rho) in _BENCHMARKS.items():
    bench.command(_name, help=_about)(_command(_name, _own_rho))


def _setting(name: str, seed: int, options: dict[str, Any]) -> Setting:
    from surgeon.benchmarks.protocol import Setting

    fields = ("rho", "scale", "net", "rows", "label_rho", "discovery")
    return Setting(benchmark=name, seed=seed, **{field: options[field] for field in fields})


def _run(
    settings: Sequence[Setting], options: dict[str, Any], progress: Progress
) -> list[dict[str, Any]]:
    from surgeon.benchmarks.run import make_operations, run

    results = []
    try:
        for setting in settings:
            results += run(
                setting,
                options["out"],
                make_operations(options["operation"], setting.seed),
                device=options["device"],
                epochs=options["epochs"],
                brief=options["brief"],
                mlp=options["mlp"],
                progress=progress.epoch,
                announce=progress.stage,
            )
    except KeyboardInterrupt:
        progress.stage("interrupted: finished results are kept; run the command again")
        raise typer.Exit(_INTERRUPTED) from None
    return results


def _show(results: Sequence[dict[str, Any]], as_json: bool) -> None:
    from surgeon.benchmarks.published import PUBLISHED, caveat
    from surgeon.report import render_bench

    if as_json:
        print_json({"results": list(results)})
    else:
        print(render_bench(results, PUBLISHED, caveat))
