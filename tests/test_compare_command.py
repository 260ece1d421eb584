"""`surgeon compare`: the table, the picture, the file for spreadsheets, and what can go wrong."""

from __future__ import annotations

import csv
import json
import shutil
from xml.etree import ElementTree

import pytest
from rich.console import Console
from surgeon_cli.compare import ContestFlags
from surgeon_cli.main import app
from typer.testing import CliRunner

import surgeon
from surgeon.methods import Leace
from surgeon.report import render_comparison

FLAGS = "--bias-labels val.csv --min-group 3"


def run(text):
    result = CliRunner().invoke(app, text.split())
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def home(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_a_comparison_from_its_files_to_its_files(home, spared):
    command = f"compare model.safetensors {FLAGS} --method dfr --method leace"
    result = run(command)
    assert result.exit_code == 0, result.stderr
    out = home / "model-compared"
    assert {path.name for path in out.iterdir()} >= {
        *("comparison.json", "comparison.csv", "comparison.svg", "rows", "edits"),
    }
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout
    names = [line.split()[0] for line in lines if line and line.split()[0] in ("leace", "dfr")]
    assert names == ["leace", "dfr"]
    assert any(line.startswith("ship: ") for line in lines)
    document = json.loads((out / "comparison.json").read_text())
    with (out / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, operation in zip(rows, document["operations"], strict=True):
        assert row["operation"] == operation["name"]
        assert float(row["balanced_accuracy"]) == operation["audit"]["balanced_accuracy"]
        assert row["bias.logits.linear"] == "0.5"
    picture = ElementTree.parse(out / "comparison.svg").getroot()
    texts = {"".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"vanilla", "leace", "dfr", "chance"} <= texts
    before = {path.name: path.read_bytes() for path in out.glob("comparison.*")}
    again = run(f"{command} --json --quiet")
    assert again.stderr == ""
    assert json.loads(again.stdout) == {
        key: document[key] for key in ("operations", "failed", "ship")
    }
    assert before == {path.name: path.read_bytes() for path in out.glob("comparison.*")}


def test_every_operation_takes_part():
    made = ContestFlags().make(seed=3)
    assert set(made) == set(surgeon.METHODS)
    assert all(name == method.name for name, method in made.items())
    assert {getattr(method, "seed", 3) for method in made.values()} == {3}
    assert set(ContestFlags(method=["gba", "dfr"]).make(seed=0)) == {"gba", "dfr"}


def test_mistakes_and_interruptions(home, spared, monkeypatch):
    refused = run(f"compare model.safetensors {FLAGS} --method nix")
    assert refused.exit_code == 2
    assert "--method: found 'nix', expected leace or dfr" in refused.stderr
    assert run(f"compare model.safetensors {FLAGS} --jobs 0").exit_code == 2
    with monkeypatch.context() as patch:

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(Leace, "fit", interrupt)
        stopped = run(f"compare model.safetensors {FLAGS} --method dfr --method leace")
    assert stopped.exit_code == 3
    assert "finished operations are kept; run the command again" in stopped.stderr
    assert "leace" not in stopped.stdout

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(Leace, "fit", fail)
    result = run(f"compare model.safetensors {FLAGS} --method dfr --method leace")
    assert result.exit_code == 0
    assert "leace failed: MemoryError: no room" in result.stdout
    other = run(f"compare model.safetensors {FLAGS} --seed 1 --method dfr")
    assert other.exit_code == 1
    assert "holds a comparison with other measures" in other.stderr


def test_the_table_of_many_names_and_a_reweighted_average_is_whole():
    def row(name, word, reweighted):
        most = reweighted or 0.9
        leakage = {"linear": most, "mlp": most}
        change = {"difference": 0.5, "low": -0.1234, "high": 0.9}
        averages = ("worst_group", "balanced", "average")
        audit = {f"{average}_accuracy": most for average in averages}
        audit |= {"reweighted_accuracy": reweighted}
        audit |= {"biases": {"bias": {"chance": 0.5, "leakage": {"logits": leakage}}}}
        verdict = word and {"word": word, "worst_group": change}
        sparsity = {"gated": 0.754}
        return {
            "name": name,
            "audit": audit,
            "verdict": verdict,
            "sparsity": sparsity,
            "seconds": 1234.0 * most,
        }

    for reweighted in (None, 1.0):
        words = (None, "improved", "worse", "nothing to remove", "no significant change")
        rows = [row("magnitude+erase", word, reweighted) for word in words]
        ship = {"name": "vanilla", "why": "least loss", "folder": None}
        console = Console(width=80, record=True, highlight=False, markup=False)
        with console.capture() as capture:
            render_comparison({"operations": rows, "failed": {}, "ship": ship}, console)
        text = capture.get()
        assert "…" not in text
        assert text.count("magnitude+erase") == 5
        if reweighted is None:
            marks = [line[-1] for line in text.splitlines() if "(-12.3 to 90.0)" in line]
            assert marks == ["+", "-", "0", "="]
        assert "ship: the checkpoint as it is (least loss)" in text
