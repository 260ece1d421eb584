"""The vanilla network: trained on the biased rows, and found again by what it was trained on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from surgeon.benchmarks.protocol import BenchSet, Training
from surgeon.checkpoint import read_safetensors, write_safetensors
from surgeon.errors import ArtefactError, CheckpointError, OptionError
from surgeon.methods.augmentation import pick
from surgeon.methods.base import Progress
from surgeon.subject import find_device
from surgeon.whole import replacing

_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda weights, **options: torch.optim.SGD(weights, momentum=0.9, **options),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# Pixels of black that a crop may show, as is usual for images of 32 x 32.
_MARGIN = 4


@dataclass(frozen=True, eq=False)
class Vanilla:
    """A trained network."""

    state: dict[str, Tensor]
    """Its state dict, on the CPU."""
    seconds: float
    """What the training took when it was run."""


def model_args(bench: BenchSet) -> dict[str, Any]:
    """Return the constructor arguments beyond the number of classes: `img_size` where it is fixed.

    Raises:
        OptionError: timm knows no network of that name.
    """
    if not timm.is_model(bench.net):
        raise OptionError(
            f"--net: '{bench.net}' is not a model of timm; choose one from timm.list_models()"
        )
    config = get_pretrained_cfg(bench.net)
    height, width = bench.train.images.shape[-2:]
    if config is None or not config.fixed_input_size or config.input_size[1:] == (height, width):
        return {}
    return {"img_size": [height, width]}


def build(bench: BenchSet) -> nn.Module:
    """Build the network of a benchmark with fresh weights."""
    classes = len(bench.target_names)
    return timm.create_model(bench.net, num_classes=classes, **model_args(bench))


def train(
    bench: BenchSet, *, seed: int, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Tensor]:
    """Train the vanilla network on the biased rows.

    Images stay on the device as bytes; autocast to bfloat16 is used on CUDA only. A last batch
    that is not full is left out of each epoch.

    Args:
        bench: Rows, network and recipe.
        seed: Of initial weights, order and augmentation.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        progress: Takes one record per epoch.

    Returns:
        The state dict, on the CPU.
    """
    target, recipe = find_device(device), bench.training
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(seed)
        net = build(bench).to(target).train()
        generator = torch.Generator().manual_seed(seed)
        x, y = bench.train.images.to(target), bench.train.target.to(target)
        scale, shift = (part.to(target) for part in _normalisation(net))
        size = min(recipe.batch_size, len(y))
        batches = len(y) // size
        make = _OPTIMISERS[recipe.optimiser]
        optimiser = make(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        schedule = _schedule(optimiser, recipe, recipe.epochs * batches)
        start = time.perf_counter()
        for epoch in range(1, recipe.epochs + 1):
            total = torch.zeros((), device=target)
            order = torch.randperm(len(y), generator=generator)[: batches * size].to(target)
            for rows in order.split(size):
                images = x[rows]
                if recipe.augment == "crop-flip":
                    images = crop_and_flip(images, generator)
                with torch.autocast(target.type, torch.bfloat16, enabled=target.type == "cuda"):
                    loss = cross_entropy(net(images.float() / scale - shift), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.detach()
            if progress:
                each = (time.perf_counter() - start) / epoch
                left = each * (recipe.epochs - epoch)
                record = {"task_loss": float(total) / batches, "seconds_left": left}
                progress({"epoch": epoch, "epochs": recipe.epochs, **record})
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def _normalisation(net: Any) -> tuple[Tensor, Tensor]:
    """Return what bytes are divided by, and what is then taken off, `[3, 1, 1]` each."""
    mean, std = (torch.tensor(net.pretrained_cfg[k]).reshape(3, 1, 1) for k in ("mean", "std"))
    return 255 * std, mean / std


def _schedule(
    optimiser: torch.optim.Optimizer, recipe: Training, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedules = torch.optim.lr_scheduler
    if recipe.schedule == "one-cycle":
        return schedules.OneCycleLR(optimiser, max_lr=recipe.lr, total_steps=steps)
    if recipe.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimiser, steps)
    if recipe.schedule == "steps":
        return schedules.LambdaLR(
            optimiser, lambda step: 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
        )
    return schedules.LambdaLR(optimiser, lambda _: 1.0)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each image at a random place of itself with a black margin; mirror every second one.

    Args:
        images: `[n, 3, H, W]` uint8.
        generator: On the CPU.

    Returns:
        `[n, 3, H, W]` uint8.
    """
    n, _, height, width = images.shape
    offsets = torch.randint(2 * _MARGIN + 1, (n, 2), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    rows = offsets[:, :1] + torch.arange(height)
    columns = offsets[:, 1:] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return pick(pad(images, (_MARGIN,) * 4), rows, columns)


def fingerprint(bench: BenchSet, seed: int) -> str:
    """Hash all that decides the trained network: name, recipe, seed, and the training rows, hex."""
    part = bench.train
    head = {
        "net": bench.net,
        "classes": len(bench.target_names),
        "images": list(part.images.shape),
        "training": asdict(bench.training),
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(part.images.numpy().tobytes())
    digest.update(part.target.numpy().tobytes())
    return digest.hexdigest()


def cached(
    bench: BenchSet,
    out: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Vanilla:
    """Return the vanilla network: read if an earlier run trained it, else trained and kept.

    Args:
        bench: Rows, network and recipe.
        out: The network lies in `vanilla` below it, under the first 16 digits of its fingerprint.
        seed: Of the training.
        device: Where to train.
        progress: Takes one record per epoch.

    Raises:
        ArtefactError: The kept file is damaged or of another network, or cannot be written.
    """
    key = fingerprint(bench, seed)
    path = out / "vanilla" / f"{key[:16]}.safetensors"
    if path.is_file():
        try:
            state, metadata = read_safetensors(path)
            if metadata.get("surgeon.bench") == key:
                return Vanilla(state, float(metadata["seconds"]))
        except CheckpointError:
            pass
        raise ArtefactError(f"{path}: is damaged; delete it, and the network is trained again")
    start = time.perf_counter()
    state = train(bench, seed=seed, device=device, progress=progress)
    seconds = time.perf_counter() - start
    with replacing(path) as temporary:
        metadata = {"format": "pt", "surgeon.bench": key, "seconds": f"{seconds:.3f}"}
        write_safetensors(temporary, state, metadata)
    return Vanilla(state, seconds)
