"""Which network a bare state dict belongs to, by the names and shapes of its tensors."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from surgeon.errors import ArtefactError
from surgeon.whole import replacing

_SHIPPED = "identification.json.gz"
# Of the hashes of a network's tensors the lowest stand for all: alike networks share many.
_SKETCH = 24
_CLASSES = 10  # any number but none: some networks have no head then
_NEAREST = 3


@dataclass(frozen=True)
class Signature:
    """What tells one network from another, whatever its number of classes."""

    names: str
    """Hash of the names of its tensors."""
    shapes: str
    """Hash of names and shapes, the classes of its heads left open."""
    heads: tuple[str, ...]
    """Tensors whose first axis is the classes."""
    sketch: tuple[int, ...]
    """The lowest hashes of single tensors, sorted."""


@dataclass(frozen=True)
class Match:
    """Networks that a state dict fits."""

    exact: tuple[str, ...]
    """Those whose names and shapes are the same."""
    nearest: tuple[str, ...]
    """Where there is none, those that share most tensors."""
    known: int
    """Networks that were compared."""


def identify(tensors: Mapping[str, Tensor]) -> Match:
    """Compare a state dict with every network of timm and torchvision.

    Signatures ship for one version of both. For another they are made once, in minutes, with a
    progress bar on stderr, and kept in the user's cache.

    Args:
        tensors: Name to tensor.
    """
    index = _read_index() or _make_index()
    shapes = _shapes(tensors)
    names, sketch = _hash(sorted(shapes)), set(_sketch(shapes))
    exact = [
        name
        for name, signature in index.items()
        if signature.names == names and signature.shapes == _open_hash(shapes, signature.heads)
    ]
    shared = {name: len(sketch & set(own.sketch)) for name, own in index.items()}
    ranked = sorted((name for name in index if shared[name]), key=lambda name: -shared[name])
    return Match(tuple(exact), () if exact else tuple(ranked[:_NEAREST]), len(index))


def make_signatures(names: Iterable[str]) -> dict[str, Signature]:
    """Make the signatures of networks; those that cannot be built are left out.

    Args:
        names: `timm:NAME` or `torchvision:NAME`.
    """
    found = {}
    for name in names:
        # Some count their widths with tensors, which have no values on the meta device.
        for device in ("meta", "cpu"):
            try:
                with torch.device(device), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found[name] = signature(_build(name))
                break
            except Exception:  # of the network's own code, or of a package it wants
                continue
    return found


def signature(net: nn.Module) -> Signature:
    """Make the signature of a network."""
    shapes, heads = _shapes(net.state_dict()), _heads(net)
    return Signature(
        names=_hash(sorted(shapes)),
        shapes=_open_hash(shapes, heads),
        heads=heads,
        sketch=_sketch(shapes),
    )


def write_index(path: Path, signatures: Mapping[str, Signature]) -> None:
    """Write signatures of the versions that are installed: equal ones as equal bytes."""
    document = {
        "versions": _versions(),
        "networks": {
            name: [own.names, own.shapes, list(own.heads), list(own.sketch)]
            for name, own in sorted(signatures.items())
        },
    }
    content = json.dumps(document, separators=(",", ":")).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))


def _read_index() -> dict[str, Signature] | None:
    shipped = resources.files("surgeon") / _SHIPPED
    for path in (shipped, _cache()):
        if not path.is_file():
            continue
        try:
            document = json.loads(gzip.decompress(path.read_bytes()))
            if document["versions"] == _versions():
                return {
                    name: Signature(names, shapes, tuple(heads), tuple(sketch))
                    for name, (names, shapes, heads, sketch) in document["networks"].items()
                }
        except (OSError, EOFError, ValueError, LookupError, TypeError):
            continue  # a damaged cache is made anew
    return None


def _make_index() -> dict[str, Signature]:
    what = "networks of timm and torchvision, once for these versions"
    found = make_signatures(track(all_names(), what, console=Console(stderr=True)))
    with suppress(ArtefactError):  # it is made again next time
        write_index(_cache(), found)
    return found


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    versions = "-".join(_versions().values())
    return Path(home) / "surgeon" / f"identification-{versions}.json.gz"


def _versions() -> dict[str, str]:
    # A build for another processor has the same networks.
    return {"timm": timm.__version__, "torchvision": torchvision.__version__.partition("+")[0]}


def all_names() -> list[str]:
    """Return every network that is compared."""
    return [
        *(f"timm:{name}" for name in timm.list_models()),
        *(
            f"torchvision:{name}"
            for name in torchvision.models.list_models(module=torchvision.models)
        ),
    ]


def _build(name: str) -> nn.Module:
    library, _, own = name.partition(":")
    if library == "timm":
        return timm.create_model(own, pretrained=False, num_classes=_CLASSES)
    return torchvision.models.get_model(own, weights=None)


def _heads(net: nn.Module) -> tuple[str, ...]:
    """Return the tensors of the classifiers: timm names them, else the last linear layer."""
    named: Any = (getattr(net, "pretrained_cfg", None) or {}).get("classifier")
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    modules = [named] if isinstance(named, str) else list(named or layers[-1:])
    return tuple(
        key
        for key in net.state_dict()
        if any(key in (f"{module}.weight", f"{module}.bias") for module in modules)
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def _open_hash(shapes: Mapping[str, tuple[int, ...]], heads: Iterable[str]) -> str:
    left_open = set(heads)
    return _hash(
        (name, (None, *shape[1:]) if name in left_open else shape)
        for name, shape in sorted(shapes.items())
    )


def _sketch(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(int(_hash([item])[:8], 16) for item in shapes.items())[:_SKETCH])


def _hash(items: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(items)).encode()).hexdigest()[:16]
