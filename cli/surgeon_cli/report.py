"""`surgeon report`: what an operation left, and what it costs to keep and to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from surgeon_cli import _options as opt
from surgeon_cli._console import print_json, result_console
from surgeon_cli._errors import reports_errors
from surgeon_cli._groups import takes_groups


@reports_errors
@takes_groups
def report(
    folders: Annotated[list[Path], typer.Argument(help="Results of surgeon.", show_default=False)],
    network: opt.NetworkFlags,
    compute: opt.ComputeFlags,
    batch: Annotated[list[int], typer.Option(min=1, help="Images of a run; repeatable.")] = [1, 64],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="File for a page with all results side by side.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier page of --out.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Show finished results, their size and their speed on this device, and write their pages.

    The page of each is its own report/index.html.
    """
    from dataclasses import asdict

    import surgeon
    from surgeon.report import render_cost, render_report, write_page, write_several

    if out and out.exists() and not force:
        raise surgeon.ArtefactError(f"{out}: exists already; pass --force or another --out")
    found: list[dict[str, Any]] = []
    for folder in folders:
        if not (folder / "surgeon.json").is_file():
            raise surgeon.ArtefactError(
                f"{folder}: no surgeon.json in it; give the folder that an operation has written"
            )
        cost = asdict(surgeon.measure_cost(network.load(folder, compute), batches=batch))
        path = folder / "report.json"
        measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        found.append({"folder": str(folder), "report": measured, "cost": cost})
        if measured:
            write_page(folder)
        if as_json:
            continue
        console = result_console()
        if len(folders) > 1:
            console.print(f"{folder}\n", soft_wrap=True)
        if measured:
            render_report(measured, console)
        render_cost(cost, console)
    if out:
        write_several(folders, out)
    if as_json:
        print_json({"results": found})
