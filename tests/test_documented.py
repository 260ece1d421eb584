"""README and docs: their commands exist, and run as they stand."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import typer
from surgeon_cli.main import app
from typer.testing import CliRunner

import surgeon
from surgeon.benchmarks import slicing, step_time
from surgeon.benchmarks.sets import SETS
from tests.tiny_bench import part_of, tiny_set

ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def documented():
    """Yield the words of every command in README and docs, those that wrap a line included."""
    for path in FILES:
        text = path.read_text("utf-8")
        spans = re.findall(r"`((?:SURGEON_DATA=\S+\s)?surgeon\s[^`]*)`", text)
        spans += re.findall(r"^ {4}((?:.* )?surgeon [a-z].*)$", text, re.MULTILINE)
        for span in spans:
            for part in re.split(r" && |, then ", " ".join(span.split())):
                words = shlex.split(part.partition(" | ")[0])
                if "surgeon" in words:
                    yield tuple(words[words.index("surgeon") + 1 :])


def standing(words):
    """Say whether a command is whole, only mentioned (it names no file), or what is wrong."""
    command, names = typer.main.get_command(app), list(words)
    while names and getattr(command, "commands", None):
        if names[0] not in command.commands:
            return f"no command {names[0]}"
        command = command.commands[names.pop(0)]
    try:
        command.make_context("surgeon", names).close()
    except Exception as error:  # typer may have a click of its own
        missing = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        named = not names or names[0].startswith("-")
        return "mentioned" if missing and named else str(error)
    return "whole"


COMMANDS = sorted(set(documented()))
WHOLE = [words for words in COMMANDS if standing(words) == "whole"]
# What a command makes, and others need.
MADE = {"demo": ["demo"], "apply": ["small"], "bench": ["kept"], "discover": ["train-bias.csv"]}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_documented_command_exists_with_its_options(words):
    assert standing(words) in ("whole", "mentioned")


def test_the_documentation_has_commands_of_every_kind():
    every = set(typer.main.get_command(app).commands)
    assert {words[0] for words in COMMANDS} == every
    assert {words[0] for words in WHOLE} >= every - {"audit"}


def test_every_operation_has_its_page():
    pages = (ROOT / "docs" / "operations").glob("*.md")
    named = {
        name
        for page in pages
        for name in re.findall(r"^\| ([a-z-]+) ", page.read_text("utf-8"), re.M)
    }
    assert set(surgeon.METHODS) <= named


@pytest.fixture(scope="module")
def owner(tmp_path_factory):
    """A folder that has every file the documentation speaks of."""
    folder = tmp_path_factory.mktemp("documented") / "owner"
    surgeon.make_demo(folder, seed=0)
    with (folder / "val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::2]
    for k, row in enumerate(rows):
        row |= {"hair": row["bias"], "age": ("old", "young")[k % 2]}
    _write(folder / "val.csv", rows, ("path", "target", "bias", "hair", "age"))
    _write(folder / "train.csv", rows, ("path", "target"))
    _write(folder / "train-bias.csv", rows, ("path", "target", "bias"))
    shutil.copytree(folder, folder / "demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = "model.safetensors --bias-labels val.csv --quiet"
        for command in (
            f"prune {data} --mode structured --epochs 1 --gamma 0.5 --out OUT",
            "apply model.safetensors OUT/edit.safetensors --slice --out small",
            "bench slicing --arch resnet50 --keep kept",
        ):
            assert CliRunner().invoke(app, command.split()).exit_code == 0
    shutil.copytree(folder / "demo", folder / "BASE")
    shutil.copyfile(folder / "OUT" / "edit.safetensors", folder / "EDIT")
    return folder


def _write(path, rows, columns):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _small_set(setting):
    """Stand in for a benchmark: its sizes are hours, what it does is the same."""
    bench = tiny_set(replace(setting, rows=None, net=None))
    return replace(
        bench,
        bias_names={"ground": bench.target_names},
        fit=part_of(80, 0.8, 21),
        select=part_of(40, 0.8, 22),
        training=replace(bench.training, epochs=1),
    )


def _few_pairs(measure, pairs, device):
    return measure(pairs=min(pairs, 2), device=device)


@pytest.fixture
def stand_ins(owner, monkeypatch):
    """What takes hours, or a connection, in small."""
    import huggingface_hub

    for name in SETS:
        monkeypatch.setitem(SETS, name, _small_set)
    monkeypatch.setattr(
        step_time, "measure_step_times", partial(_few_pairs, step_time.measure_step_times)
    )
    monkeypatch.setattr(slicing, "ARCHITECTURES", ("test_resnet", "convnextv2_atto"))
    monkeypatch.setattr("surgeon_cli.compare._METHODS", ("leace", "dfr"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(owner / "demo"))


@pytest.mark.slow
@pytest.mark.usefixtures("spared", "stand_ins")
@pytest.mark.parametrize("words", WHOLE, ids=" ".join)
def test_a_documented_command_runs(owner, words, tmp_path, monkeypatch):
    folder = tmp_path / "owner"
    shutil.copytree(owner, folder)
    for made in MADE.get(words[0], ()):
        shutil.move(folder / made, tmp_path / made)
    if words[:2] == ("bench", "table"):
        shutil.copytree(ROOT / "docs" / "benchmarks", folder / "docs" / "benchmarks")
    monkeypatch.chdir(folder)
    # Without a GPU the same is run on the CPU.
    named = ["auto" if word == "cuda" else word.removesuffix("...") for word in words]
    result = CliRunner().invoke(app, named)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    assert result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("spared")
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{path.name}-{k}")
        for path in FILES
        for k, code in enumerate(PYTHON.findall(path.read_text("utf-8")))
    ],
)
def test_documented_python_runs(owner, code, tmp_path, monkeypatch):
    folder = tmp_path / "owner"
    shutil.copytree(owner, folder)
    monkeypatch.chdir(folder)
    exec(compile(code, "documented", "exec"), {})
    assert (folder / "debiased" / "model.safetensors").is_file()
