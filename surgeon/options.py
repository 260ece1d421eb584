"""Checks of a user's options: one line with the flag, what was found and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

from surgeon.errors import OptionError


def check_choice(name: str, found: str | None, choices: Sequence[str]) -> None:
    """Refuse what is not among the choices; None stands for a default and passes.

    Args:
        name: Of the field; the flag is made of it.
        found: What was given.
        choices: One or more.

    Raises:
        OptionError: It is not among them.
    """
    if found is not None and found not in choices:
        raise OptionError(f"{_flag(name)}: found '{found}', expected {' or '.join(choices)}")


def check_least(name: str, found: float | None, least: float) -> None:
    """Refuse what is below the least, infinite or not a number; None passes.

    Args:
        name: Of the field; the flag is made of it.
        found: What was given.
        least: The smallest value that can be.

    Raises:
        OptionError: It cannot be.
    """
    if found is not None and not least <= found < math.inf:
        raise OptionError(f"{_flag(name)}: found {found}, expected {least} or more")


def check_positive(name: str, found: float | None) -> None:
    """Refuse what is not a finite number above zero; None passes.

    Args:
        name: Of the field; the flag is made of it.
        found: What was given.

    Raises:
        OptionError: It is not.
    """
    if found is not None and not 0 < found < math.inf:
        raise OptionError(f"{_flag(name)}: found {found}, expected more than 0")


def check_share(name: str, found: float | None) -> None:
    """Refuse what is not from 0 to 1; None passes.

    Args:
        name: Of the field; the flag is made of it.
        found: What was given.

    Raises:
        OptionError: It is not.
    """
    if found is not None and not 0 <= found <= 1:  # NaN too
        raise OptionError(f"{_flag(name)}: found {found}, expected 0 to 1")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
