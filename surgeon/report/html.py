"""What pages are made of: files read, templates filled, pictures put inside."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from surgeon.errors import ArtefactError


def read_json(path: Path) -> Any:
    """Read a file of a finished result.

    Raises:
        ArtefactError: It is not there, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path}: cannot be read ({error}); give the folder that an operation has written"
        ) from error


def render(template: str, **values: Any) -> str:
    """Fill a template; text that came from files is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("surgeon.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg_url"] = lambda chart: data_url("image/svg+xml", chart.svg.encode())
    return environment


def data_url(kind: str, content: bytes) -> str:
    """Return content as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
