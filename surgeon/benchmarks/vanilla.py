"""The vanilla network: trained on the biased rows, and found again by what it was trained on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
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
# Passes before a recording, in which libraries choose their kernels.
_WARM_UPS = 3
# Pixels of black that a crop may show, as is usual for images of 32 x 32.
_MARGIN = 4


Gradients = Callable[[Tensor, Tensor], Tensor]
"""Takes a batch's images and targets, leaves gradients, and gives the loss, a scalar."""


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

    Images stay on the device as bytes. On CUDA autocast to bfloat16 is used, and the passes through
    the network are recorded once and replayed. A last batch that is not full is left out of each
    epoch.

    Args:
        bench: Rows, network and recipe.
        seed: Of initial weights, order and augmentation.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        progress: Takes one record per epoch.

    Returns:
        The state dict, on the CPU.
    """
    target, recipe = find_device(device), bench.training
    crop = recipe.augment == "crop-flip"
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(seed)
        net = build(bench).to(target).train()
        generator = torch.Generator().manual_seed(seed)
        x, y = bench.train.images.to(target), bench.train.target.to(target)
        scale, shift = (part.to(target) for part in _normalisation(net))
        size = min(recipe.batch_size, len(y))
        batches = len(y) // size
        gradients = _gradients(net, target.type)
        if target.type == "cuda":
            gradients = _recorded(net, gradients, x[:size] / scale, y[:size].clone())
        make = _OPTIMISERS[recipe.optimiser]
        optimiser = make(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        schedule = _schedule(optimiser, recipe, recipe.epochs * batches)
        start = time.perf_counter()
        for epoch in range(1, recipe.epochs + 1):
            total = torch.zeros((), device=target)
            order = torch.randperm(len(y), generator=generator)[: batches * size].to(target)
            times = batches if crop else 0
            drawn = [draw_crops(size, x.shape[2:], generator) for _ in range(times)]
            # Moved once an epoch: each move waits for the device.
            places = [torch.stack(side).to(target) for side in zip(*drawn, strict=True)]
            for i, rows in enumerate(order.split(size)):
                images = cropped(x[rows], *(side[i] for side in places)) if crop else x[rows]
                total += gradients(images.float() / scale - shift, y[rows])
                optimiser.step()
                schedule.step()
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


def _gradients(net: nn.Module, device: str) -> Gradients:
    """Return what puts a batch's gradients in place of the last ones, and gives its mean loss."""

    def run(images: Tensor, target: Tensor) -> Tensor:
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = cross_entropy(net(images), target)
        loss.backward()
        return loss.detach()

    return run


def _recorded(net: nn.Module, run: Gradients, images: Tensor, target: Tensor) -> Gradients:
    """Record what `run` does on CUDA once, to replay it without launching each kernel by itself.

    Args:
        net: What `run` passes through; its kernels are laid out channels last, and its tensors keep
            their values.
        run: As `_gradients` makes it.
        images: `[n, 3, H, W]` float, of the size of all batches; later batches are put here.
        target: `[n]` int64, likewise.
    """
    net.to(memory_format=torch.channels_last)
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(images.device)
    with torch.cuda.device(images.device), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                run(images, target)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            loss = run(images, target)
    net.load_state_dict(kept)  # BatchNorm's statistics took in what was recorded

    def replay(new_images: Tensor, new_target: Tensor) -> Tensor:
        images.copy_(new_images)
        target.copy_(new_target)
        graph.replay()
        return loss

    return replay


def draw_crops(num: int, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a random place for each image in itself with a black margin; mirror every second one.

    Args:
        num: Images.
        shape: Their H and W.
        generator: On the CPU.

    Returns:
        Rows `[num, H]` and columns `[num, W]` of the image with its margin, int64.
    """
    height, width = shape
    offsets = torch.randint(2 * _MARGIN + 1, (num, 2), generator=generator)
    mirrored = torch.rand(num, generator=generator) < 0.5
    rows = offsets[:, :1] + torch.arange(height)
    columns = offsets[:, 1:] + torch.arange(width)
    return rows, torch.where(mirrored[:, None], columns.flip(1), columns)


def cropped(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take the rows and columns of each image `[n, 3, H, W]` with its black margin."""
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
