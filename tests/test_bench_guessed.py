"""Labelled rows with a guessed bias: what operations see, what the report is made of."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from surgeon.benchmarks.files import read_result
from surgeon.benchmarks.guessed import guessed
from surgeon.benchmarks.run import run
from surgeon.benchmarks.sets import SETS
from surgeon.data import Rows
from surgeon.discovery import Voronoi
from surgeon.errors import OptionError
from surgeon.methods import FFW
from surgeon.methods.base import new_edit
from tests.tiny_bench import SETTING, part_of, tiny_set

GUESSED = replace(SETTING, discovery="voronoi")


def named_alike(setting):
    bench = tiny_set(setting)
    biased = {"fit": part_of(80, 0.8, 21), "select": part_of(40, 0.8, 22)}
    return replace(bench, bias_names={"ground": bench.target_names}, **biased)


@pytest.fixture
def seen(monkeypatch, spared):
    """Register the tiny set and keep what a search is given instead of searching."""
    monkeypatch.setitem(SETS, "tiny", named_alike)
    given = []

    def fit(self, subject, data, *, progress=None):
        given.append((subject, data))
        return new_edit(subject, "ffw")

    monkeypatch.setattr(FFW, "fit", fit)
    return given


def test_operations_see_the_guess_and_report_rows_the_truth(tmp_path, seen):
    (result,) = run(GUESSED, tmp_path, {"ffw-refit": FFW()}, epochs=1)
    ((subject, data),) = seen
    bench = named_alike(GUESSED)
    # Values of a file are numbered as they sort: down, up.
    assert torch.equal(data.report.groups.biases, 1 - bench.report.biases)
    index = torch.cat([data.fit.index, data.select.index])
    rows = Rows(data.fit.images, data.labels.groups.take(index), index)
    expected = Voronoi(seed=GUESSED.seed).find(subject, rows, rows).values
    both = 1 - torch.cat([data.fit.groups.biases, data.select.groups.biases])[:, 0]
    assert torch.equal(both, expected)
    truth = torch.cat([bench.fit.biases, bench.select.biases])[:, 0]
    assert not torch.equal(both, truth)
    target = torch.cat([bench.fit.target, bench.select.target])
    against = truth != target
    hits = int((against & (both != target)).sum())
    assert result["guess"]["conflicting"] == int(against.sum())
    assert result["guess"]["recall"] == pytest.approx(hits / int(against.sum()))
    path = tmp_path / "results" / "tiny-seed-1-voronoi-epochs1-ffw-refit.json"
    assert read_result(path) == result
    # Known labels are another setting, with a result of its own.
    (known,) = run(SETTING, tmp_path, {"ffw-refit": FFW()}, epochs=1)
    assert torch.equal(seen[1][1].fit.groups.biases, 1 - bench.fit.biases)
    assert "guess" not in known


def test_the_guess_reads_no_bias(tmp_path, seen):
    run(SETTING, tmp_path, {"ffw-refit": FFW()}, epochs=1)
    ((subject, data),) = seen
    first, _ = guessed(subject, data, "voronoi", seed=0)
    labels = data.labels.groups
    turned = replace(labels, biases=1 - labels.biases)
    parts = {
        name: replace(part, groups=replace(part.groups, biases=1 - part.groups.biases))
        for name, part in {"fit": data.fit, "select": data.select}.items()
    }
    second, _ = guessed(
        subject,
        replace(data, labels=replace(data.labels, groups=turned), **parts),
        "voronoi",
        seed=0,
    )
    assert torch.equal(first.fit.groups.biases, second.fit.groups.biases)
    assert torch.equal(first.select.groups.biases, second.select.groups.biases)


def test_a_bias_that_no_guess_could_name_is_refused(tmp_path, seen, monkeypatch):
    monkeypatch.setitem(SETS, "tiny", tiny_set)
    with pytest.raises(OptionError, match="--discovery: voronoi guesses one bias of the values up"):
        run(GUESSED, tmp_path, {"ffw-refit": FFW()}, epochs=1)
    with pytest.raises(OptionError, match="--discovery: found 'nix', expected voronoi or clusters"):
        run(replace(SETTING, discovery="nix"), tmp_path / "new", {})
    assert not (tmp_path / "new").exists()


def test_results_from_before_are_of_known_labels(tmp_path, seen):
    (result,) = run(SETTING, tmp_path, {"ffw-refit": FFW()}, epochs=1)
    path = tmp_path / "results" / "tiny-seed-1-epochs1-ffw-refit.json"
    older = json.loads(path.read_text())
    del older["setting"]["discovery"]
    path.write_text(json.dumps(older))
    assert read_result(path) == result
    assert run(SETTING, tmp_path, {"ffw-refit": FFW()}, epochs=1) == [result]
    assert len(seen) == 1
