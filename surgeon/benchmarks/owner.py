"""What the owner of a network would have: the checkpoint, its config, labels and images."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from surgeon.benchmarks.protocol import BenchSet, Part
from surgeon.benchmarks.vanilla import Vanilla, build, model_args
from surgeon.checkpoint import write_safetensors
from surgeon.export import write_json
from surgeon.whole import fresh_directory

PARTS = ("fit", "select", "report")
# Written with the folder, which is put in place whole: shows what it holds.
MARKER = "bench.json"


def without_repeats(bench: BenchSet) -> tuple[BenchSet, int]:
    """Drop labelled rows whose very image stands in a later part too; such files are refused.

    Args:
        bench: Rows in three parts; report rows are never dropped.

    Returns:
        The set, and how many rows it lost.
    """
    seen = set(_digests(bench.report))
    parts, dropped = {}, 0
    for name in ("select", "fit"):
        part: Part = getattr(bench, name)
        digests = _digests(part)
        kept = torch.tensor([digest not in seen for digest in digests], dtype=torch.bool)
        dropped += int((~kept).sum())
        parts[name] = Part(part.images[kept], part.target[kept], part.biases[kept])
        seen.update(digests)
    return (replace(bench, **parts) if dropped else bench), dropped


def _digests(part: Part) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in part.images.numpy()]


def content_hash(bench: BenchSet, vanilla: str) -> str:
    """Hash all that an owner's folder is made of, hex.

    Args:
        bench: The labelled rows and the names.
        vanilla: Fingerprint of the network.
    """
    names = [vanilla, bench.target_names, list(bench.bias_names.items())]
    digest = hashlib.sha256(json.dumps(names).encode())
    for name in PARTS:
        part: Part = getattr(bench, name)
        digest.update(f"{name} {list(part.images.shape)}".encode())
        for tensor in (part.images, part.target, part.biases):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_marker(folder: Path) -> dict[str, Any]:
    """Return what a finished folder says of itself; empty if there is none."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_owner(folder: Path, bench: BenchSet, vanilla: Vanilla, content: str) -> None:
    """Write `model.safetensors`, `config.json`, `val.csv` and `images/`, in place of earlier ones.

    Args:
        folder: Put in place whole, at the end.
        bench: Rows and names.
        vanilla: The network.
        content: Hash of it all, kept in the marker with the seconds of the training.

    Raises:
        ArtefactError: The folder is not one of these, or cannot be written.
    """
    with fresh_directory(folder, force=True, marker=MARKER) as new:
        write_safetensors(new / "model.safetensors", vanilla.state, {"format": "pt"})
        write_json(new / "config.json", _config(bench))
        _write_rows(new, bench)
        write_json(new / MARKER, {"sha256": content, "vanilla_seconds": vanilla.seconds})


def _write_rows(folder: Path, bench: BenchSet) -> None:
    (folder / "images").mkdir()
    columns, values = list(bench.bias_names), list(bench.bias_names.values())
    number = 0
    with (folder / "val.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "target", *columns, "split"])
        for name in PARTS:
            part: Part = getattr(bench, name)
            rows = zip(part.images, part.target.tolist(), part.biases.tolist(), strict=True)
            for pixels, target, biases in rows:
                path = f"images/{number:05d}.png"
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / path)
                named = [names[bias] for names, bias in zip(values, biases, strict=True)]
                writer.writerow([path, bench.target_names[target], *named, name])
                number += 1


def _config(bench: BenchSet) -> dict[str, Any]:
    """Return timm's `config.json`: the images as they are, no resize and no crop."""
    with torch.random.fork_rng(devices=[]):
        net: Any = build(bench)
    own = net.pretrained_cfg
    classes, extra = len(bench.target_names), model_args(bench)
    return {
        "architecture": bench.net,
        "num_classes": classes,
        "num_features": net.num_features,
        "label_names": list(bench.target_names),
        **({"model_args": extra} if extra else {}),
        "pretrained_cfg": {
            "input_size": list(bench.train.images.shape[1:]),
            "mean": list(own["mean"]),
            "std": list(own["std"]),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": classes,
            **{key: own[key] for key in ("first_conv", "classifier") if own.get(key)},
        },
    }
