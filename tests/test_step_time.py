"""What the timing benchmark runs is what the search runs."""

from __future__ import annotations

from surgeon.benchmarks import step_time


def test_both_modes_are_timed_on_every_net(monkeypatch):
    monkeypatch.setattr(step_time, "_CASES", (("small-conv-net", 14, 8),))
    rows = step_time.measure_step_times(pairs=1)
    assert [(row.net, row.mode) for row in rows] == [
        ("small-conv-net", "unstructured"),
        ("small-conv-net", "structured"),
    ]
    for row in rows:
        assert row.ratio == row.gate_ms / row.adam_ms
        assert row.low <= row.ratio <= row.high
