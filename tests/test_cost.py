"""What a network costs: counts that can be worked out by hand, and figures that must be there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from surgeon.cost import _Live, measure_cost, multiply_adds
from surgeon.paired import time_pairs


class Plain(nn.Module):
    """One convolution and a head; everything about it can be counted by hand."""

    def __init__(self, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.fixture
def built(pico, tmp_path, monkeypatch):
    """A network half as wide as its architecture, with a file."""
    subject = pico(lambda: Plain(2), 8)
    monkeypatch.setattr(type(subject.architecture), "build", lambda _: Plain(4))
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1000) + torch.randn(250).numpy().tobytes())
    return replace(subject, path=path, attributes={"conv": {"out_channels": 2}})


def test_sizes_are_what_they_are(built):
    cost = measure_cost(built, batches=())
    assert (cost.full.parameters, cost.edited.parameters) == (4 * 27 + 4 + 10, 2 * 27 + 2 + 6)
    pixels = 8 * 8
    assert cost.full.multiply_adds == 4 * 27 * pixels + 8
    assert cost.edited.multiply_adds == 2 * 27 * pixels + 4
    assert cost.full.tensor_bytes == 4 * cost.full.parameters
    assert cost.file_bytes == 2000
    assert 900 < cost.compressed_bytes < 1100
    assert cost.sliced
    assert not measure_cost(replace(built, attributes={}), batches=()).sliced


def test_speed_names_every_batch_and_counts_what_is_alive(built):
    cost = measure_cost(built, batches=(1, 5))
    assert [row.batch for row in cost.speeds] == [1, 5]
    for row in cost.speeds:
        assert row.low <= row.ratio <= row.high
        assert min(row.full, row.edited) > 0
        maps = [4 * 8 * 8 * width * row.batch for width in (4, 2)]
        peaks = [row.full_peak - cost.full.tensor_bytes, row.edited_peak - cost.edited.tensor_bytes]
        # The map, and the few numbers behind the mean.
        assert all(
            size <= peak < size + 200 * row.batch for size, peak in zip(maps, peaks, strict=True)
        )


def test_what_is_left_behind_does_not_count():
    net = nn.Sequential(*[nn.Conv2d(3, 3, 1, bias=False) for _ in range(6)]).requires_grad_(False)
    assert multiply_adds(net, torch.ones(2, 3, 4, 4)) == 6 * 2 * 9 * 16
    with torch.no_grad(), _Live() as live:
        net(torch.ones(1, 3, 4, 4))
    assert live.most <= 3 * 4 * 48


def test_runs_take_turns():
    order = []
    found = time_pairs(
        lambda: order.append("a"),
        lambda: order.append("b"),
        pairs=4,
        device=torch.device("cpu"),
        warm=2,
    )
    assert "".join(order) == "ab" * 6
    assert found.low <= found.ratio <= found.high
