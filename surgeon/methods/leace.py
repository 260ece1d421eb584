"""LEACE: erase the bias from what the head sees, in closed form, and leave the encoder alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from surgeon.data import Data
from surgeon.edit import Edit
from surgeon.methods.base import Method, Progress, new_edit, with_erasure
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Leace(Method):
    """Fold the closed-form erasure of the fitted biases into the vanilla head.

    Source:
        Belrose and others, LEACE, 2023, theorem 4.2; see `fit_erasure` for how we differ.
    """

    name: ClassVar[str] = "leace"

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Fit the erasure on the vanilla features of the fit rows.

        Raises:
            IncompatibleError: Nothing can be folded into the head.
        """
        subject.head.check(subject.head_tensors, "an erasure")
        edit = new_edit(subject, self.name)
        return with_erasure(subject, data, edit, above_noise=False)
