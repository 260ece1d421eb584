"""Last-layer retraining on group-balanced rows: the baseline every result stands beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgeon.data import Data
from surgeon.edit import Edit
from surgeon.methods.base import Method, Progress, new_edit
from surgeon.methods.refit import STRENGTHS, refit_head
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DFR(Method):
    """Refit the head on frozen features, groups counting equally.

    Source:
        Kirichenko and others, Last layer re-training is sufficient for robustness to spurious
        correlations, ICLR 2023. We weight rows so that groups count equally instead of averaging
        fits on balanced subsets, and use an L2 penalty, its strength chosen on select rows.
    """

    name: ClassVar[str] = "dfr"

    strengths: tuple[float, ...] = STRENGTHS
    """Values of C, the inverse penalty on standardised features."""

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Fit one logistic regression per strength and keep the best on select rows."""
        return new_edit(subject, self.name, updates=refit_head(subject, data, self.strengths))
