"""Image classifiers of the Hugging Face: repositories of the hub, and networks of transformers."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError, OptionError

HUB, FOLDER = "hf-hub:", "local-dir:"
_SHOWN = 120
# Numbers of Pillow's filters, as a processor's file has them.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def find_checkpoint(name: str | Path) -> Path:
    """Return where a checkpoint lies; one of the hub is downloaded, or taken from its cache.

    Args:
        name: A path, `local-dir:PATH`, or `hf-hub:OWNER/NAME`, with `@REVISION` if need be.

    Raises:
        CheckpointError: The repository cannot be had.
        OptionError: huggingface_hub is not installed.
    """
    text = str(name)
    if text.startswith(FOLDER):
        return Path(text.removeprefix(FOLDER))
    if not text.startswith(HUB):
        return Path(name)
    hub = _needed("huggingface_hub", HUB)
    repository, _, revision = text.removeprefix(HUB).partition("@")
    try:
        return Path(
            hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=["*.json", "model.safetensors"],
            )
        )
    except Exception as error:  # of the network, of the hub, of the name
        raise CheckpointError(
            f"{text}: cannot be had ({_short(error)}); check the name and the "
            "connection, or give a folder"
        ) from error


def repository(name: str | Path) -> str | None:
    """Return `OWNER/NAME` of a checkpoint given as `hf-hub:OWNER/NAME`, None for another."""
    text = str(name)
    return text.removeprefix(HUB).partition("@")[0] if text.startswith(HUB) else None


def is_of_transformers(config: Mapping[str, Any]) -> bool:
    """Say whether a `config.json` is one of transformers."""
    return isinstance(config.get("model_type"), str) and "architecture" not in config


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the classifier that a configuration describes, with fresh weights.

    It takes images and returns logits, as any other network here.

    Raises:
        CheckpointError: transformers knows no such classifier.
        OptionError: It is not installed.
    """
    transformers = _needed("transformers", "a config.json with a model_type")
    own = {key: value for key, value in config.items() if key not in ("model_type", "preprocessor")}
    try:
        with _quiet():
            made = transformers.AutoConfig.for_model(config["model_type"], **own)
            net = transformers.AutoModelForImageClassification.from_config(made)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"config.json: transformers {transformers.__version__} builds no image classifier of "
            f"model_type '{config['model_type']}' ({_short(error)})"
        ) from error
    return _returning_logits(net)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder under the names of the transformers that is installed.

    Raises:
        CheckpointError: Weights are missing, or do not fit.
    """
    transformers = _needed("transformers", "a config.json with a model_type")
    try:
        with _quiet():
            net, found = transformers.AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it ({_short(error)})") from error
    wrong = [
        f"{kind.removesuffix('_keys')} {key if isinstance(key, str) else key[0]}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(found.get(kind) or (), key=str)
    ]
    if wrong:
        raise CheckpointError(
            f"{folder}: {len(wrong)} keys do not fit {type(net).__name__}; a classifier that was "
            "trained has all of them",
            wrong,
        )
    return dict(net.state_dict())


def preprocessing(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Translate `preprocessor_config.json` into timm's keys; what it does not say is left out."""
    found: dict[str, Any] = {
        "mean": processor.get("image_mean"),
        "std": processor.get("image_std"),
        "interpolation": _FILTERS.get(processor.get("resample", 2)),
    }
    size, crop = processor.get("size"), processor.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size or {})
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop or {})
    edge = size.get("shortest_edge")
    if processor.get("do_center_crop") and crop:
        found |= {"input_size": (3, crop["height"], crop["width"]), "crop_mode": "center"}
        found["crop_pct"] = crop["height"] / (edge or size.get("height") or crop["height"])
    elif edge:  # the crop is part of the processor's code, as ConvNeXt's is
        share = 1.0 if edge >= 384 else processor.get("crop_pct") or 0.875
        mode = "squash" if edge >= 384 else "center"
        found |= {"input_size": (3, edge, edge), "crop_pct": share, "crop_mode": mode}
    elif size:
        found |= {"input_size": (3, size["height"], size["width"])}
        found |= {"crop_pct": 1.0, "crop_mode": "squash"}
    return {key: value for key, value in found.items() if value is not None}


def label_names(config: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the names of the classes by number; None where they only count."""
    names = {str(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    return None if all(value == f"LABEL_{key}" for key, value in names.items()) else names


def _returning_logits(net: nn.Module) -> nn.Module:
    kind = type(net)

    class Classifier(kind):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values=pixel_values).logits

    Classifier.__name__ = Classifier.__qualname__ = kind.__name__
    net.__class__ = Classifier
    return net


def _short(error: Exception) -> str:
    """Return the first sentence or so; some errors list every model there is."""
    first = (str(error).splitlines() or [""])[0]
    return first if len(first) < _SHOWN else f"{first[:_SHOWN]}..."


def _needed(package: str, what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise OptionError(f"{what}: needs {package}; pip install 'debias-surgeon[hub]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers says while it loads off the terminal."""
    from transformers.utils import logging as own

    level, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity(logging.CRITICAL)
    own.disable_progress_bar()
    try:
        yield
    finally:
        own.set_verbosity(level)
        if bars:
            own.enable_progress_bar()
