"""A label file without biases becomes one that every operation takes."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from surgeon_cli.main import app
from typer.testing import CliRunner

import surgeon
from surgeon.discovery import ByCluster, PseudoLabels, moments
from surgeon.discovery.discover import agreement_with
from surgeon.errors import OptionError


def guess(values, names=("0", "1")):
    values = torch.tensor(values)
    return PseudoLabels(values, names, torch.full((len(values),), 0.5))


def test_agreement_by_hand(toy):
    # Bias 0 goes with target 0 and 1 with 1; rows 2 and 5 are against it.
    groups = toy.data.fit.groups.take(torch.arange(6))
    target, bias = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 0])
    object.__setattr__(groups, "target", target)
    object.__setattr__(groups, "biases", bias[:, None])
    # The guess finds row 2, misses row 5 and takes row 0 for one.
    row = agreement_with(guess([1, 0, 1, 1, 1, 1]), groups, 0)
    assert row["conflicting"] == 2
    assert (row["recall"], row["precision"]) == (0.5, 0.5)
    assert 0 < row["normalised_mutual_information"] < 1
    exact = agreement_with(guess(bias.tolist()), groups, 0)
    assert exact == {
        "normalised_mutual_information": 1.0,
        "conflicting": 2,
        "recall": 1.0,
        "precision": 1.0,
    }
    assert agreement_with(guess(target.tolist()), groups, 0)["precision"] is None
    # Values that are no classes conflict with none.
    named = agreement_with(guess(bias.tolist(), ("a", "b")), groups, 0)
    assert set(named) == {"normalised_mutual_information"}


@pytest.fixture
def owner(tiny, tmp_path):
    """The tiny folder with a split column, its label file without the biases, and how they were."""
    folder = tmp_path / "owner"
    shutil.copytree(tiny, folder)
    with (folder / "val.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Some rows that any network takes for another class.
    for row in rows[::9]:
        row["target"] = {"cat": "dog", "dog": "cat"}[row["target"]]
    with (folder / "val.csv").open("w") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    parts = ("fit", "select", "report")
    with (folder / "plain.csv").open("w") as file:
        file.write("path,target,split\n")
        for i, row in enumerate(rows):
            file.write(f"{row['path']},{row['target']},{parts[i // 4 % 3]}\n")
    return folder


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("method", ["voronoi", "clusters"])
def test_what_is_written_is_taken(owner, method, monkeypatch):
    monkeypatch.setattr(moments, "_MARKS", (64, 192))  # cut shorter
    found = run("discover", owner, "--labels", owner / "plain.csv", "--method", method)
    assert found.exit_code == 0, found.output
    written = owner / "plain-bias.csv"
    assert f"next: surgeon prune {owner} --bias-labels {written}" in found.stdout
    with written.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "target", "bias", "confidence", "split"]
    assert [row["split"] for row in rows[:12:4]] == ["fit", "select", "report"]
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)
    values = {row["bias"] for row in rows}
    assert values == ({"cat", "dog"} if method == "voronoi" else set("01234567"))
    subject = surgeon.load(owner)
    data = surgeon.read_data(subject, written)
    assert len(data.fit) == 20
    before = written.read_bytes()
    again = run("discover", owner, "--labels", owner / "plain.csv", "--method", method)
    assert again.exit_code == 1
    assert "exists already; pass --force" in again.stderr
    forced = run(
        "discover", owner, "--labels", owner / "plain.csv", "--method", method, "--force", "--json"
    )
    assert written.read_bytes() == before
    document = json.loads(forced.stdout)
    assert document["rows"] == 60
    assert sum(document["values"].values()) == 60
    assert document["agreement"] == {}


def test_true_biases_are_compared_with_and_not_used(owner, tmp_path):
    start = ["discover", owner, "--labels", owner / "val.csv", "--method", "clusters"]
    words = [*start, "--json", "--quiet"]
    out = tmp_path / "elsewhere.csv"
    told = run(*words, "--bias-col", "bias", "--bias-col", "age", "--out", out)
    assert told.exit_code == 0, told.output
    assert set(json.loads(told.stdout)["agreement"]) == {"bias", "age"}
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "target", "bias", "confidence", "true_bias", "true_age"]
    assert {row["true_bias"] for row in rows} == {"blue", "red"}
    run(*words, "--out", tmp_path / "blind.csv")
    with (tmp_path / "blind.csv").open() as file:
        blind = list(csv.DictReader(file))
    assert [row["bias"] for row in blind] == [row["bias"] for row in rows]
    loud = run(*start, "--out", out, "--force")
    assert f"--images {owner}" in loud.stdout


def test_nothing_is_fitted_on_report_rows(owner, monkeypatch):
    subject = surgeon.load(owner)
    rows, labels = surgeon.read_rows(subject, owner / "plain.csv", bias_cols=())
    seen = []

    def find(self, subject, rows, train, *, progress=None):
        seen.append((len(rows), train))
        return guess([0] * len(rows), ("0", "1"))

    monkeypatch.setattr(ByCluster, "find", find)
    surgeon.discover(subject, rows, labels, ByCluster())
    ((count, train),) = seen
    assert count == 60
    assert len(train) == 40
    assert {labels.split[row] for row in train.index.tolist()} == {"fit", "select"}


def test_refusals(owner, tmp_path):
    before = (owner / "plain.csv").read_bytes()
    for words, match in (
        (("--out", owner / "plain.csv", "--force"), "is the label file itself"),
        (("--method", "tea-leaves"), "--method: found 'tea-leaves', expected voronoi or clusters"),
        (("--method", "clusters", "--clusters", "1"), "--clusters: found 1, expected 2 or more"),
        (("--over", tmp_path), "holds no checkpoint"),
        (("--out", tmp_path), "exists already"),
        (("--out", tmp_path, "--force"), "exists already"),
    ):
        found = run("discover", owner, "--labels", owner / "plain.csv", *words)
        assert found.exit_code == 1 + (match.startswith("--")), (words, found.output)
        assert match in found.stderr
        assert not (owner / "plain-bias.csv").exists()
    assert (owner / "plain.csv").read_bytes() == before
    with pytest.raises(OptionError):
        ByCluster(clusters=0)
