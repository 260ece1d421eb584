"""Groups of flags: a command takes a dataclass, its user sees one flag for each field."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each field of the dataclasses among its arguments.

    Args:
        command: Its arguments and their fields are annotated as typer wants them; every field has a
            default or is such a dataclass itself, and no name stands twice.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flags: list[inspect.Parameter] = []
    for name, own in inspect.signature(command).parameters.items():
        if name in groups:
            flags += _flags(groups[name])
        else:
            flags.append(own.replace(annotation=hints[name]))

    def wrapped(**given: Any) -> None:
        made = {name: _make(kind, given) for name, kind in groups.items()}
        command(**given, **made)

    functools.update_wrapper(wrapped, command)
    wrapped.__signature__ = inspect.Signature(flags)  # pyright: ignore
    wrapped.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return wrapped


def _make(group: Any, given: dict[str, Any]) -> Any:
    """Take the fields of a group out of the flags that were given."""
    hints = get_type_hints(group)
    return group(
        **{
            field.name: _make(hints[field.name], given)
            if is_dataclass(hints[field.name])
            else given.pop(field.name)
            for field in fields(group)
        }
    )


def _flags(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        if is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name])
        else:
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=_default(field),
                annotation=hints[field.name],
            )


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
