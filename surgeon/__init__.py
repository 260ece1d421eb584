"""Operate on a trained vision classifier so that it no longer leans on a shortcut."""

from __future__ import annotations

from surgeon.audit import Audit
from surgeon.compare import Comparison, compare
from surgeon.cost import measure_cost
from surgeon.data import Data, read_data, read_rows
from surgeon.demo import make_demo
from surgeon.discovery import (
    DISCOVERIES,
    Discovery,
    check_labels_out,
    discover,
    write_labels,
)
from surgeon.edit import Edit
from surgeon.errors import (
    ArtefactError,
    CheckpointError,
    IncompatibleError,
    LabelError,
    OptionError,
    SurgeonError,
)
from surgeon.export import PROBE_ROWS, Provenance, export
from surgeon.formats import Formats
from surgeon.inspection import inspect
from surgeon.labels import read_labels
from surgeon.loading import load
from surgeon.measure import Measures, audit
from surgeon.methods import DFR, FFW, METHODS, Finetune, Leace, Method
from surgeon.operate import Outcome, operate
from surgeon.subject import Subject, find_device
from surgeon.surgery import apply
from surgeon.train_counts import read_train_counts
from surgeon.whole import check_out

__all__ = [
    "DFR",
    "DISCOVERIES",
    "FFW",
    "METHODS",
    "PROBE_ROWS",
    "ArtefactError",
    "Audit",
    "CheckpointError",
    "Comparison",
    "Data",
    "Discovery",
    "Edit",
    "Finetune",
    "Formats",
    "IncompatibleError",
    "LabelError",
    "Leace",
    "Measures",
    "Method",
    "OptionError",
    "Outcome",
    "Provenance",
    "Subject",
    "SurgeonError",
    "apply",
    "audit",
    "check_labels_out",
    "check_out",
    "compare",
    "discover",
    "export",
    "find_device",
    "inspect",
    "load",
    "make_demo",
    "measure_cost",
    "operate",
    "read_data",
    "read_labels",
    "read_rows",
    "read_train_counts",
    "write_labels",
]
