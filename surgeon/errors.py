"""What a user can get wrong: one summary line, then the particulars."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 20


class SurgeonError(Exception):
    """Report a fault in the user's input as one line plus indented particulars.

    Args:
        summary: One line: where, what was found, what was expected, what to do.
        details: Further lines; the first 20 are shown, the rest are counted.
    """

    exit_code = 1

    def __init__(self, summary: str, details: Sequence[str] = ()) -> None:
        super().__init__(summary)
        # What a library says may span lines.
        self.summary = " ".join(summary.splitlines())
        self.details = tuple(" ".join(line.splitlines()) for line in details)

    def __str__(self) -> str:
        lines = [self.summary, *(f"  {line}" for line in self.details[:_SHOWN])]
        if len(self.details) > _SHOWN:
            lines.append(f"  + {len(self.details) - _SHOWN} more")
        return "\n".join(lines)


class CheckpointError(SurgeonError):
    """A checkpoint cannot be read, or does not fit its architecture."""


class LabelError(SurgeonError):
    """A label file, or an image it names, cannot be used."""


class IncompatibleError(SurgeonError):
    """A valid network and a valid operation that do not go together."""


class ArtefactError(SurgeonError):
    """A file of ours cannot be written, or does not belong to its base."""


class OptionError(SurgeonError):
    """An option has a value that cannot be honoured."""

    exit_code = 2
