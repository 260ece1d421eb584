"""What the report says where removing the bias must cost accuracy, and where it need not."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from surgeon.edit import Erasure
from surgeon.measure import Measures
from surgeon.methods import DFR, FFW
from surgeon.methods.base import new_edit
from surgeon.operate import operate
from surgeon.remarks import bound_targets, halved, partly_erased, unopposed_values
from surgeon.report import render_report

MEASURES = Measures(mlp=False, brief=True)


def test_a_target_that_is_the_bias_is_named_before_anything_is_removed(planted, toy):
    (sentence,) = bound_targets(planted.data.fit.groups)
    count = int((planted.data.fit.groups.target == 2).sum())
    assert sentence.startswith(f"target '2': all {count} fit rows have bias '2'")
    assert bound_targets(toy.data.fit.groups) == ()
    audited = replace(planted.data.fit.groups, audited=("bias",))
    assert bound_targets(audited) == ()


def test_halved_steps_are_told():
    (sentence,) = halved([{"lr": step} for step in (0.02, 0.02, 0.01, 0.005)])
    assert sentence.startswith("trained again with steps of 0.01 and 0.005: those of 0.02 broke")
    assert halved([{"lr": 0.02}, {"lr": 0.02}]) == halved([{"loss": 1.0}]) == halved([]) == ()


def test_a_bias_value_that_no_row_goes_against_is_named(toy):
    groups = toy.data.fit.groups
    kept = ((groups.biases[:, 0] == 0) | (groups.target == 1)).nonzero().flatten()
    (sentence,) = unopposed_values(groups.take(kept))
    count = int(((groups.biases[:, 0] == 1) & (groups.target == 1)).sum())
    assert sentence.startswith(f"{groups.columns[0]} '1': all {count} fit rows have target '1'")
    assert unopposed_values(groups) == ()
    one_target = (groups.target == 0).nonzero().flatten()
    assert unopposed_values(groups.take(one_target)) == ()


def test_directions_that_are_left_to_noise_are_told(planted):
    groups = planted.data.fit.groups
    empty = new_edit(planted.subject, "ffw")

    def erased(rank):
        shapes = ((24, rank), (rank, 24), (24,))
        return replace(empty, erasure=Erasure(*(torch.zeros(shape) for shape in shapes)))

    (sentence,) = partly_erased(erased(1), groups)
    assert sentence.startswith(
        "1 of 2 directions that could tell the bias stand out of noise in 400"
    )
    assert partly_erased(erased(2), groups) == partly_erased(empty, groups) == ()
    two_values = groups.take((groups.biases[:, 0] < 2).nonzero().flatten())
    assert partly_erased(erased(1), two_values) == ()


def test_the_trade_is_told_with_its_figures(planted, toy):
    done = operate(planted.subject, planted.data, FFW(epochs=10, gamma=30), measures=MEASURES)
    told = [note for note in done.report.notes if note.startswith("a trade: ")]
    before, after = (done.report.operations[i].audit for i in (0, -1))
    assert len(told) == 1
    for audit in (before, after):
        assert f"{100 * audit['balanced_accuracy']:.1f}" in told[0]
        assert f"{100 * audit['biases']['bias']['leakage']['logits']['linear']:.1f}" in told[0]
    assert after["balanced_accuracy"] < before["balanced_accuracy"] - 0.1
    free = operate(toy.subject, toy.data, DFR(), measures=MEASURES)
    assert not [note for note in free.report.notes if note.startswith("a trade: ")]


@pytest.mark.slow
def test_the_curve_over_gamma_pays_accuracy_for_information(planted):
    done = operate(
        planted.subject,
        planted.data,
        FFW(epochs=10, erase_head=False),
        measures=MEASURES,
        sweep={"gamma": [0.0, 3.0, 30.0]},
    )
    known = [record["bias_term"] for record in done.report.sweep]
    scores = [record["select"]["balanced_accuracy"] for record in done.report.sweep]
    assert known[0] > known[1] > known[2]
    assert scores[0] > scores[2] + 0.1
    # What was given is what is shown: no setting is replaced by a new head alone.
    assert all(record["masked"] for record in done.report.sweep)
    for record in done.report.sweep:
        assert set(record["controls"]) == {"magnitude", "random"}
    assert done.report.sweep[0]["controls"]["random"] < scores[0] - 0.1
    console = Console(width=80, record=True, file=io.StringIO())
    render_report(done.report.to_json(), console, sweep=done.report.sweep)
    shown = console.export_text()
    assert all(f"{100 * score:.1f}" in shown for score in scores)
    assert all(f"{value:.3f}" in shown for value in known)
