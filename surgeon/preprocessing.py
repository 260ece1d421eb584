"""Preprocessing: from an image file to the tensor that the network was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from surgeon.errors import CheckpointError, IncompatibleError, LabelError, OptionError

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")
_CHOICES = ("scale", "clip")


@dataclass(frozen=True)
class Preprocessing:
    """Hold timm's evaluation settings of one network.

    Args:
        input_size: channels, height, width.
        mean: per channel, of pixels in [0, 1].
        std: per channel, > 0.
        interpolation: of the resize, by timm's name.
        crop_pct: edge of the crop over edge of the resized image, in (0, 2].
        crop_mode: `center`, `squash` or `border`.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def from_config(cls, pretrained_cfg: Mapping[str, Any], **overrides: Any) -> Preprocessing:
        """Read timm's keys, as `timm.data.resolve_data_config` does, and check the values.

        Args:
            pretrained_cfg: timm's `pretrained_cfg`; what it lacks gets timm's default, and keys
                that are no part of the preprocessing are ignored.
            **overrides: values by field name that count instead; None counts as not given.

        Raises:
            CheckpointError: a value of the configuration cannot be used.
            OptionError: an override cannot be used.
            IncompatibleError: the network does not take three channels.
        """
        names = [field.name for field in fields(cls)]
        unknown = [name for name in overrides if name not in names]
        if unknown:
            raise OptionError(f"preprocessing has no '{unknown[0]}'; expected one of {names}")
        given = {name: value for name, value in overrides.items() if value is not None}
        found = {name: pretrained_cfg.get(name) for name in names}
        resolved = {**resolve_data_config(pretrained_cfg=found), **given}
        values: dict[str, Any] = {}
        for name in names:
            try:
                values[name] = _CHECKS[name](resolved[name])
            except (TypeError, ValueError) as error:
                raise (OptionError if name in given else CheckpointError)(
                    f"preprocessing: {name} is {resolved[name]!r}, expected {_EXPECTED[name]}; "
                    + ("correct the option" if name in given else "correct it or give an option")
                ) from error
        channels = values["input_size"][0]
        if channels != 3:
            raise IncompatibleError(
                f"preprocessing: input_size {values['input_size']} has {channels} channels, "
                "expected 3; only networks that read RGB images can be operated on"
            )
        return cls(**values)

    def to_config(self) -> dict[str, Any]:
        """Give the settings under timm's `pretrained_cfg` keys, ready for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Build timm's evaluation transform.

        Returns:
            A function from an RGB image to `[3, H, W]` float32.
        """
        transform: Any = create_transform(**asdict(self), is_training=False)
        return transform


def open_image(path: str | Path, *, sixteen_bit: str | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, as timm's `ImageDataset` does.

    Grey, palette, CMYK and images with alpha go through Pillow's `convert("RGB")`: alpha is
    dropped, not blended, and an EXIF orientation is not applied. Only the first frame is read.
    Colour images of 16 bits per channel are read by Pillow from the high byte of each value, so
    they are scaled whatever `sixteen_bit` says; grey ones keep their 16 bits and would be clipped,
    so what to do with them must be said.

    Args:
        path: the file.
        sixteen_bit: for grey images of 16 bits, `scale` divides by 257 and rounds, `clip` cuts off
            above 255; None refuses them.

    Raises:
        LabelError: the file cannot be decoded, or not without a choice that was not made.
        OptionError: `sixteen_bit` is unknown.
    """
    if sixteen_bit not in (None, *_CHOICES):
        raise OptionError(f"sixteen_bit is '{sixteen_bit}', expected one of {', '.join(_CHOICES)}")
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "F" or image.mode.startswith("I"):
                image = _to_eight_bit(image, path, sixteen_bit)
            elif image.mode == "P" and "transparency" in image.info:
                # The same pixels as by convert("RGB") directly, which warns.
                image = image.convert("RGBA")
            return image.convert("RGB")
    except LabelError:
        raise
    except Exception as error:  # decoders of broken files raise anything, SyntaxError included
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabelError(
            f"{path}: cannot be decoded ({reason}); repair the file or remove its row"
        ) from error


def _to_eight_bit(image: Image.Image, path: str | Path, sixteen_bit: str | None) -> Image.Image:
    """Bring a grey image of more than 8 bits to 8, in the way that was asked for."""
    if image.mode == "F":
        raise LabelError(
            f"{path}: holds floating-point pixels (mode F), whose range is unknown; save it with 8 "
            "bits per channel"
        )
    if sixteen_bit is None:
        raise LabelError(
            f"{path}: holds more than 8 bits per pixel (mode {image.mode}), which would be clipped "
            "at 255; pass --sixteen-bit scale or clip"
        )
    pixels = np.asarray(image).astype(np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise LabelError(
            f"{path}: pixels from {pixels.min()} to {pixels.max()}, expected 0..65535; save it "
            "with 8 or 16 bits per channel"
        )
    eight = (pixels + 128) // 257 if sixteen_bit == "scale" else pixels.clip(0, 255)
    return Image.fromarray(eight.astype(np.uint8))


def _sizes(value: Any) -> tuple[int, ...]:
    if len(value) != 3 or any(int(size) != size or size < 1 for size in value):
        raise ValueError
    return tuple(int(size) for size in value)


def _numbers(value: Any, *, positive: bool) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in value)
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError
    if positive and min(numbers) <= 0:
        raise ValueError
    return numbers


def _share(value: Any) -> float:
    if not 0 < float(value) <= 2:  # timm's volo nets have 1.15; 87.5 is a slip for 0.875
        raise ValueError
    return float(value)


def _one_of(value: Any, names: tuple[str, ...]) -> str:
    if value not in names:
        raise ValueError
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "input_size": _sizes,
    "mean": lambda value: _numbers(value, positive=False),
    "std": lambda value: _numbers(value, positive=True),
    "interpolation": lambda value: _one_of(value, _INTERPOLATIONS),
    "crop_pct": _share,
    "crop_mode": lambda value: _one_of(value, _CROP_MODES),
}
_EXPECTED = {
    "input_size": "channels, height and width",
    "mean": "3 numbers",
    "std": "3 numbers above 0",
    "interpolation": f"one of {', '.join(_INTERPOLATIONS)}",
    "crop_pct": "a number above 0 and up to 2",
    "crop_mode": f"one of {', '.join(_CROP_MODES)}",
}
