"""The `surgeon` command."""

from __future__ import annotations

from typing import Annotated

import typer

from surgeon_cli.apply import apply
from surgeon_cli.audit import audit
from surgeon_cli.bench import bench
from surgeon_cli.compare import compare
from surgeon_cli.demo import demo
from surgeon_cli.discover import discover
from surgeon_cli.finetune import finetune
from surgeon_cli.head import head
from surgeon_cli.inspect import inspect
from surgeon_cli.mask import mask
from surgeon_cli.prune import prune
from surgeon_cli.report import report

app = typer.Typer(
    name="surgeon",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"surgeon {version('debias-surgeon')}")
        raise typer.Exit


@app.callback()
def surgeon(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Operate on a trained vision classifier so that it no longer leans on a shortcut."""


for command in (
    demo,
    inspect,
    audit,
    discover,
    prune,
    mask,
    head,
    finetune,
    compare,
    apply,
    report,
):
    app.command()(command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line."""
    app()
