"""`surgeon bench` as a command: results, seeds, interruptions, hostile options."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from surgeon_cli.main import app
from typer.testing import CliRunner

from surgeon.benchmarks import run as runner
from surgeon.benchmarks.protocol import Setting
from surgeon.benchmarks.sets import SETS


def command(*words):
    result = CliRunner().invoke(app, ["bench", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def digits_on_disk(tmp_path, monkeypatch):
    """Write bars of two classes in MNIST's format: enough for ten report rows in each group."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for seed, (prefix, n) in enumerate((("train", 200), ("t10k", 200))):
        rng = np.random.default_rng(seed)
        labels = (np.arange(n) % 2).astype(np.uint8)
        images = np.zeros((n, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = rng.integers(4, 22, 2)
            image[
                (slice(row, row + 3), slice(None))
                if label
                else (slice(None), slice(column, column + 3))
            ] = 255
            image[rng.integers(28, size=3), rng.integers(28, size=3)] = 9
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes(), 1))
    monkeypatch.setenv("SURGEON_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("digits_on_disk", "spared", "always_masked")
def test_the_command_runs_the_papers_scale_capped():
    words = ["biased-mnist", "--scale", "paper", "--net", "surgeon_small_conv_net", "--seed", 0]
    words += ["--rows", 60]
    result = command(*words, "--epochs", 1, "--operation", "ffw")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("## biased-mnist, paper scale\n")
    assert (
        "### rho 0.99, net surgeon_small_conv_net, 60 labelled rows, at most 1 epochs\n"
        in result.stdout
    )
    assert "\n| ffw+erase | 1 | " in result.stdout
    assert "biased-mnist-0.99-seed-0-paper-n60-epochs1" in result.stderr
    name = "biased-mnist-0.99-seed-0-paper-n60-epochs1-surgeon_small_conv_net"
    assert (Path("bench") / "results" / f"{name}-ffw.json").is_file()
    again = command(*words, "--epochs", 1, "--operation", "ffw", "--json", "--quiet")
    assert again.stderr == ""
    (document,) = json.loads(again.stdout)["results"]
    assert document["source"].startswith("digits in MNIST's format")
    left_out = command("table")
    assert left_out.exit_code == 1
    assert left_out.stderr.splitlines() == [
        "note: 1 results of runs with --epochs are left out",
        "error: every result is of a run with --epochs; run one without",
    ]


def test_the_command_counts_seeds_and_keeps_results_when_interrupted(monkeypatch, tmp_path):
    seen = []

    def stand_in(setting, out, operations, **kwargs):
        seen.append((setting, sorted(operations), kwargs["epochs"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(runner, "run", stand_in)
    words = ["cifar10s", "--out", tmp_path, "--rows", 300, "--label-rho", 0.9]
    result = command(*words)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "interrupted: finished results are kept; run the command again"
    ]
    assert [setting.seed for setting, *_ in seen] == [0, 1, 2]
    expected = Setting(benchmark="cifar10s", seed=0, rho=0.95, rows=300, label_rho=0.9)
    assert seen[0] == (expected, ["ffw", "ffw-paper", "ffw-structured"], None)
    command("multi-color-mnist", "--seeds", 1, "--out", tmp_path)
    assert seen[-1][0] == Setting(benchmark="multi-color-mnist", seed=0)


@pytest.mark.slow
def test_slicing_says_what_it_cut_and_what_it_refused(tmp_path):
    command = ["bench", "slicing", "--arch", "test_resnet", "--arch", "convnextv2_atto"]
    command += ["--keep", str(tmp_path)]
    table, _, refused = CliRunner().invoke(app, command).stdout.partition("Refused:")
    cells = [cell.strip() for cell in table.strip().splitlines()[-1].strip("|").split("|")]
    assert cells[:4] == ["test_resnet", "304", "91", "0"]
    assert cells[-1] == "yes"
    assert float(cells[-2]) < 1e-12
    assert (tmp_path / "test_resnet" / "load_sliced.py").is_file()
    assert "convnextv2_atto: no unit can be cut out exactly" in refused


@pytest.mark.slow
def test_refit_says_what_it_timed():
    times = json.loads(CliRunner().invoke(app, ["bench", "refit", "--json"]).stdout)
    assert times["rows"] == 400
    assert 1 < times["epochs"] <= 200
    assert times["ratio"] == pytest.approx(times["network_s"] / times["cached_s"])


def test_every_benchmark_is_a_command():
    import typer

    group = typer.main.get_command(app).commands["bench"]
    assert set(group.commands) == set(SETS) | {"labels", "slicing", "step", "refit", "table"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("biased-mnist --rho nan", 2, "error: --rho: found nan, expected 0 to 1"),
        ("biased-mnist --seed 1 --seeds 2", 2, "error: --seed and --seeds: found both"),
        ("biased-mnist --operation nix", 2, "error: --operation: found 'nix'"),
        ("biased-mnist --scale huge", 2, "error: --scale: found 'huge'"),
        ("digits --device tpu", 2, "error: --device: 'tpu' cannot be used here"),
        ("digits --net nix", 2, "error: --net: "),
        ("multi-color-mnist --rho 0.5", 2, "error: --rho: multi-color-mnist"),
        ("biased-mnist --seed 0", 1, "error: SURGEON_DATA: is not set"),
        ("table nowhere", 1, "error: nowhere: no results in it"),
        ("biased-mnist --seeds 0", 2, "Usage: "),
        ("biased-mnist --rows 0", 2, "Usage: "),
        ("biased-mnist --epochs 0", 2, "Usage: "),
    ],
)
def test_hostile_options(words, code, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_DATA", raising=False)
    result = command(*words.split())
    assert result.exit_code == code
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    if message.startswith("error"):
        assert lines[-1].startswith(message)
        assert sum(line.startswith("error") for line in lines) == 1
    else:
        assert lines[0].startswith(message)
    assert list(tmp_path.iterdir()) == []
