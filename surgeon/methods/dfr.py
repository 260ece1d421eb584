"""Last-layer retraining on group-balanced rows: the baseline every result stands beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from surgeon.data import Data
from surgeon.edit import Edit
from surgeon.methods.base import Method, Progress, new_edit
from surgeon.methods.refit import STRENGTHS, refit_head, refit_head_on_subsets
from surgeon.options import check_choice
from surgeon.subject import Subject

# Both as in the published code.
_PAPER_STRENGTHS = (0.01, 0.03, 0.07, 0.1, 0.3, 0.7, 1.0)
_REFITS = 20


@dataclass(frozen=True, kw_only=True)
class DFR(Method):
    """Refit the head on frozen features, groups counting equally.

    Source:
        Kirichenko and others, Last layer re-training is sufficient for robustness to spurious
        correlations, ICLR 2023. `recipe="paper"` averages 20 L1 fits on subsets with as many rows
        of every group. By default rows are weighted so that groups count equally, and the penalty
        is L2: one fit, of all rows. Strengths are chosen by the mean accuracy over groups of the
        select rows, where the published code takes the worst group of a held-out half.
    """

    name: ClassVar[str] = "dfr"

    recipe: Literal["default", "paper"] = "default"
    strengths: tuple[float, ...] | None = None
    """Values of C, the inverse penalty on standardised features; None takes the recipe's own."""
    seed: int = 0
    """Of the paper's subsets; the default draws nothing."""

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, ("default", "paper"))

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Fit a logistic regression per strength and keep the best on select rows."""
        if self.recipe == "paper":
            strengths = self.strengths or _PAPER_STRENGTHS
            head = refit_head_on_subsets(subject, data, strengths, refits=_REFITS, seed=self.seed)
        else:
            head = refit_head(subject, data, self.strengths or STRENGTHS)
        updates = subject.head.replaced(*head, subject.head_tensors)
        return new_edit(subject, self.name, updates=updates)
