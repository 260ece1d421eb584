"""The owner's folder: what it holds, and rows that stand in two parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from surgeon.benchmarks.owner import without_repeats, write_owner
from surgeon.benchmarks.vanilla import Vanilla, train
from surgeon.data import read_data
from surgeon.loading import load
from tests.tiny_bench import SETTING, part_of, tiny_set


@pytest.mark.parametrize("net", ["surgeon_small_conv_net", "test_vit"])
def test_the_owner_gets_what_was_made(tmp_path, net):
    side = 32 if net == "test_vit" else 8
    parts = {name: part_of(n, 0.5, n, side) for name, n in (("fit", 9), ("select", 7))}
    bench = replace(
        tiny_set(SETTING), net=net, train=part_of(40, 0.9, 3, side), report=part_of(8, 0.5, 4, side)
    )
    bench = replace(bench, **parts)
    state = train(bench, seed=0)
    write_owner(tmp_path / "owner", bench, Vanilla(state, 1.0), "x")
    subject = load(tmp_path / "owner")
    assert subject.label_names == ("up", "down")
    assert all(torch.equal(subject.tensors()[name], value) for name, value in state.items())
    data = read_data(subject, tmp_path / "owner" / "val.csv", bias_cols=["ground"])
    for name in ("fit", "select", "report"):
        rows, part = getattr(data, name), getattr(bench, name)
        assert torch.equal(rows.groups.target, part.target)
        # Names are sorted: blue, red.
        assert torch.equal(rows.groups.biases, 1 - part.biases)
        mean, std = (
            torch.tensor(getattr(subject.preprocessing, k)).reshape(3, 1, 1)
            for k in ("mean", "std")
        )
        expected = (part.images / 255 - mean) / std
        torch.testing.assert_close(rows.batch(torch.arange(len(part))), expected)


def test_rows_that_stand_in_two_parts_are_dropped_from_the_earlier():
    bench = tiny_set(SETTING)
    assert without_repeats(bench) == (bench, 0)
    images = bench.fit.images.clone()
    images[0], images[5], images[6] = bench.report.images[3], bench.select.images[0], images[7]
    select = bench.select.images.clone()
    select[1] = bench.report.images[9]
    repeated = replace(
        bench,
        fit=replace(bench.fit, images=images),
        select=replace(bench.select, images=select),
    )
    cleaned, dropped = without_repeats(repeated)
    assert dropped == 3
    assert torch.equal(cleaned.fit.images, images[[i for i in range(80) if i not in (0, 5)]])
    assert torch.equal(cleaned.fit.target[:4], bench.fit.target[1:5])
    assert len(cleaned.select) == 39
    assert len(cleaned.report) == 80
