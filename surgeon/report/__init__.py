"""Show a report; numbers are computed elsewhere."""

from __future__ import annotations

from surgeon.report.bench import render_bench
from surgeon.report.comparison import render_comparison, write_comparison
from surgeon.report.cost import render_cost
from surgeon.report.discovery import render_discovery
from surgeon.report.page import write_page
from surgeon.report.several import write_several
from surgeon.report.slicing import render_slicing, slice_lines
from surgeon.report.terminal import render_audit, render_inspection, render_report
from surgeon.report.times import render_refit_time, render_step_times

__all__ = [
    "render_audit",
    "render_bench",
    "render_comparison",
    "render_cost",
    "render_discovery",
    "render_inspection",
    "render_refit_time",
    "render_report",
    "render_slicing",
    "render_step_times",
    "slice_lines",
    "write_comparison",
    "write_page",
    "write_several",
]
