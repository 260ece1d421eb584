"""The charts of a report, each with the table it is drawn from."""

from __future__ import annotations

from surgeon.report.charts.accuracy import group_chart, leakage_charts, operation_grid, result_chart
from surgeon.report.charts.chart import Chart, Grid
from surgeon.report.charts.course import history_chart, sparsity_chart, sweep_chart
from surgeon.report.charts.layers import layer_charts
from surgeon.report.charts.plane import feature_chart

__all__ = [
    "Chart",
    "Grid",
    "feature_chart",
    "group_chart",
    "history_chart",
    "layer_charts",
    "leakage_charts",
    "operation_grid",
    "result_chart",
    "sparsity_chart",
    "sweep_chart",
]
