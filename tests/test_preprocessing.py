from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from surgeon.errors import CheckpointError, IncompatibleError, LabelError, OptionError
from surgeon.preprocessing import Preprocessing, open_image

CONFIG = {
    "input_size": (3, 24, 24),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "classifier": "fc",
}


def noise(*shape, top=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"mean": None},
        {"input_size": [3, 20, 30]},
        {"crop_mode": "border", "input_size": (3, 16, 16)},
    ],
)
def test_transform_is_that_of_timm(config):
    image = Image.fromarray(noise(40, 50, 3))
    expected = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    read = Preprocessing.from_config(config)
    assert torch.equal(read.transform()(image), expected(image))
    assert Preprocessing.from_config(json.loads(json.dumps(read.to_config()))) == read


def test_overrides_count_and_none_does_not():
    read = Preprocessing.from_config(CONFIG, mean=[0.5], crop_pct=None, input_size=[3, 8, 8])
    changed = {"mean": (0.5, 0.5, 0.5), "input_size": (3, 8, 8)}
    assert read == dataclasses.replace(Preprocessing.from_config(CONFIG), **changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_size", (3, 0, 8)),
        ("input_size", 224),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, float("nan"), 0.5)),
        ("std", (0.5, 0.0, 0.5)),
        ("interpolation", "random"),
        ("crop_pct", 87.5),
        ("crop_mode", "middle"),
    ],
)
def test_values_are_checked(name, value):
    with pytest.raises(CheckpointError, match=rf"{name} is .*, expected"):
        Preprocessing.from_config({**CONFIG, name: value})
    with pytest.raises(OptionError, match=rf"{name} is .*correct the option"):
        Preprocessing.from_config(CONFIG, **{name: value})


def test_zero_crop_is_no_default():
    with pytest.raises(OptionError, match="crop_pct is 0"):
        Preprocessing.from_config(CONFIG, crop_pct=0)


def test_unknown_override_and_grey_networks_are_refused():
    with pytest.raises(OptionError, match="no 'crop'"):
        Preprocessing.from_config(CONFIG, crop=1)
    with pytest.raises(IncompatibleError, match="1 channels, expected 3"):
        Preprocessing.from_config({"input_size": (1, 8, 8)})


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "bytes", "exif"]
)
def test_modes_convert_as_pillow_does(tmp_path, mode):
    path = tmp_path / f"image.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}"
    image = Image.fromarray(noise(6, 7, 4), "RGBA")
    if mode == "bytes":  # a palette with an opacity per entry, for which Pillow warns
        image.convert("RGB").quantize(8).save(path, transparency=bytes(range(8)))
    elif mode == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").save(path, exif=exif)
    else:
        image.convert("RGB").convert(mode).save(path)
    with warnings.catch_warnings(), Image.open(path) as plain:
        warnings.simplefilter("ignore", UserWarning)
        expected = plain.convert("RGB")
    read = open_image(path)
    assert read.mode == "RGB"
    assert read.size == (7, 6)
    assert read.tobytes() == expected.tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_need_a_choice(tmp_path, suffix):
    pixels = noise(5, 4, top=65536, dtype=np.uint16)
    pixels[0, :3] = 0, 200, 65535
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path)
    with pytest.raises(LabelError, match=r"mode I.*--sixteen-bit scale or clip"):
        open_image(path)
    scaled = np.asarray(open_image(path, sixteen_bit="scale"))
    assert np.array_equal(scaled[..., 0], np.round(pixels / 257))
    assert np.array_equal(scaled[..., 0], scaled[..., 2])
    clipped = np.asarray(open_image(path, sixteen_bit="clip"))
    assert np.array_equal(clipped[..., 1], np.minimum(pixels, 255))
    with Image.open(path) as plain:
        assert np.array_equal(clipped, np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[-1, 3]], np.int32), r"pixels from -1 to 3"),
        (np.array([[0, 65536]], np.int32), r"pixels from 0 to 65536"),
        (np.array([[0.5]], np.float32), r"mode F"),
    ],
)
def test_deeper_images_are_always_refused(tmp_path, pixels, message):
    path = tmp_path / "image.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(LabelError, match=message):
        open_image(path, sixteen_bit="scale")


def test_unknown_choice(tmp_path):
    with pytest.raises(OptionError, match="sixteen_bit is 'wrap'"):
        open_image(tmp_path / "image.png", sixteen_bit="wrap")


def test_broken_files_are_named(tmp_path, monkeypatch):
    whole = tmp_path / "whole.png"
    Image.fromarray(noise(64, 64, 3)).save(whole)
    data = whole.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    for name, content in (
        ("empty.png", b""),
        ("text.png", b"not an image"),
        ("truncated.png", data[: len(data) // 2]),
        ("flipped.png", bytes(flipped)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(LabelError, match=rf"{name}: cannot be decoded \("):
            open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(LabelError, match=r"whole\.png: cannot be decoded .*4096 pixels"):
        open_image(whole)
