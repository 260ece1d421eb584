"""Read a checkpoint without running code; write safetensors, equal content as equal bytes."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgeon.errors import CheckpointError
from surgeon.hugging_face import find_checkpoint, is_of_transformers

_PICKLED = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
# Moving averages first, as timm's own loader prefers them.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
# What the keys that are read must be.
_CONFIG_KINDS: dict[str, tuple[Any, ...]] = {
    "architecture": ("a name", str),
    "library": ("timm, torchvision or factory", str),
    "num_classes": ("a whole number", int),
    "model_args": ("an object", dict),
    "pretrained_cfg": ("an object", dict),
    "preprocessing": ("an object", dict),
    "label_names": ("a list of names", list, dict),
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Hold what a checkpoint file says, untouched."""

    path: Path
    """The weights file."""
    tensors: dict[str, Tensor]
    """Parameters and buffers by name, wrappers and prefixes removed."""
    sha256: str
    """Hash of the file's bytes, hex."""
    config: dict[str, Any]
    """Content of `config.json` beside the weights; empty if there is none."""
    notes: tuple[str, ...] = ()
    """What was decided while reading, for the user to see."""
    sliced: bool = False
    """The file says that its tensors are smaller than the architecture's."""


def file_sha256(path: Path) -> str:
    """Hash a file's bytes.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file, or a directory with `model.safetensors` and `config.json`.

    Args:
        path: `.safetensors`, or a PyTorch file that `weights_only=True` accepts, or a directory,
            `local-dir:PATH` or `hf-hub:OWNER/NAME`.

    Raises:
        CheckpointError: Missing, damaged, empty or non-finite file, or one that needs code
            execution to read.
    """
    path = find_checkpoint(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; give a checkpoint or a directory that holds one"
        )
    try:
        sha256 = file_sha256(path)
        if path.suffix == ".safetensors":
            tensors, header = read_safetensors(path)
            notes, sliced = (), header.get("surgeon.sliced") == "true"
        elif path.suffix in _PICKLED:
            (tensors, notes), sliced = _read_pickle(path), False
        else:
            raise CheckpointError(
                f"{path}: found suffix '{path.suffix}', expected .safetensors or one of "
                f"{', '.join(_PICKLED)}"
            )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; expected a state dict")
    broken = [
        f"{name}: {int((~torch.isfinite(t)).sum())} of {t.numel()} values"
        for name, t in tensors.items()
        if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} tensors hold NaN or infinity, expected finite weights", broken
        )
    config = _read_config(path.parent / "config.json")
    if is_of_transformers(config):
        config["preprocessor"] = _read_config(path.parent / "preprocessor_config.json")
    return Checkpoint(path, tensors, sha256, config, notes, sliced)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor and the string metadata of a safetensors file.

    Raises:
        CheckpointError: The header or the data is damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # The mapping is read lazily: a copy keeps later changes of the file out.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, dict(
                file.metadata() or {}
            )
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a valid safetensors file ({error}); copy or download it again"
        ) from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        with warnings.catch_warnings():
            # Of unusual pickle protocols, which are read or refused all the same.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: reading it needs code execution; save its state_dict with "
            "safetensors.torch.save_file and try again"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a readable PyTorch file ({str(error).splitlines()[0]}); copy it again"
        ) from error
    taken = []
    while isinstance(content, dict) and (
        key := next((k for k in _WRAPPERS if isinstance(content.get(k), dict)), None)
    ):
        taken.append(key)
        content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a state dict of named tensors"
        )
    other = [f"{k}: {type(v).__name__}" for k, v in content.items() if not isinstance(v, Tensor)]
    if other:
        raise CheckpointError(
            f"{path}: {len(other)} entries are not tensors; save the state dict alone", other
        )
    tensors = {str(name): tensor.detach() for name, tensor in content.items()}
    while tensors and (
        prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in tensors)), None)
    ):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    notes = (f"{path.name}: weights taken from '{'.'.join(taken)}'",) if taken else ()
    return tensors, notes


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not valid JSON ({error}); expected timm's config"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}, expected an object")
    wrong = [
        f"'{key}': found {json.dumps(config[key])[:60]}, expected {kinds[0]}"
        for key, kinds in _CONFIG_KINDS.items()
        if config.get(key) is not None and not isinstance(config[key], kinds[1:])
    ]
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} values cannot be used; correct them", wrong)
    return {k: v for k, v in config.items() if v is not None or k not in _CONFIG_KINDS}


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and string metadata: the same content gives the same bytes.

    The library orders metadata at random in each process, so the JSON header is serialised again
    with sorted keys and padded to 8 bytes.
    """
    content = save(
        # A copy each: the library refuses tensors that share memory, as tied weights do.
        {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        },
        dict(metadata),
    )
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(
        json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
