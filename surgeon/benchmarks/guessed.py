"""Labelled rows whose bias is guessed: what an owner without bias labels would have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from surgeon.data import Data, Rows
from surgeon.discovery import DISCOVERIES, agreement_with
from surgeon.errors import OptionError
from surgeon.options import check_choice
from surgeon.subject import Subject


def check_discovery(name: str | None) -> None:
    """Refuse a discovery that is not known; None stands for true labels.

    Raises:
        OptionError: It is not a registry key.
    """
    check_choice("discovery", name, tuple(DISCOVERIES))


def guessed(
    subject: Subject, data: Data, name: str, *, seed: int
) -> tuple[Data, Mapping[str, Any]]:
    """Guess the bias of fit and select rows from images and targets; report rows keep the true one.

    Args:
        subject: The vanilla network.
        data: Labelled rows with one bias, whose values are named as those of the guess are.
        name: Registry key of the discovery.
        seed: Of the discovery.

    Returns:
        The rows with the guess in place of the bias, and how it agrees with the true one.

    Raises:
        OptionError: There are several biases, or the guess has other values.
    """
    parts = (data.fit, data.select)
    index = torch.cat([part.index for part in parts])
    rows = Rows(data.fit.images, data.labels.groups.take(index), index)
    groups = rows.groups
    found = DISCOVERIES[name](seed=seed).find(subject, rows, rows)  # pyright: ignore[reportCallIssue]
    if [sorted(names) for names in groups.value_names] != [sorted(found.names)]:
        raise OptionError(
            f"--discovery: {name} guesses one bias of the values {', '.join(found.names)}; "
            "expected a benchmark whose bias has these"
        )
    places = torch.tensor([groups.value_names[0].index(name) for name in found.names])
    taken = places[found.values].split([len(part) for part in parts])
    fit, select = (
        replace(part, groups=replace(part.groups, biases=values[:, None]))
        for part, values in zip(parts, taken, strict=True)
    )
    agreement = agreement_with(found, groups, 0)
    return replace(data, fit=fit, select=select), {"discovery": name, **agreement}
