"""What a benchmark is made of: a setting, rows of images, a network and how it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from surgeon.options import check_choice, check_least, check_share

Scale = Literal["small", "paper"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One cell of a benchmark; equal settings give equal bytes.

    Raises:
        OptionError: A value that no benchmark could have.
    """

    benchmark: str
    """Registry key, for example `biased-mnist`."""
    seed: int
    rho: float | None = None
    """Share of training rows that follow the shortcut; None: the benchmark's own."""
    scale: Scale = "small"
    net: str | None = None
    """A timm name; None: the benchmark's own."""
    rows: int | None = None
    """Labelled rows for fit and select together; None: the benchmark's own."""
    label_rho: float | None = None
    """Share of labelled rows that follow the shortcut; None: unbiased."""
    discovery: str | None = None
    """How the bias of fit and select rows is guessed; None: it is known."""

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, ("small", "paper"))
        for name in ("rho", "label_rho"):
            check_share(name, getattr(self, name))
        for name, least in (("seed", 0), ("rows", 1)):
            check_least(name, getattr(self, name), least)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of images with their labels."""

    images: Tensor
    """`[N, 3, H, W]` uint8."""
    target: Tensor
    """`[N]` int64."""
    biases: Tensor
    """`[N, K]` int64, one column per bias."""

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the vanilla network is trained."""

    optimiser: Literal["sgd", "adam", "adamw"]
    lr: float
    epochs: int
    batch_size: int
    weight_decay: float = 0.0
    schedule: Literal["constant", "one-cycle", "cosine", "steps"] = "constant"
    """`steps`: a tenth at half and at three quarters of the epochs."""
    augment: Literal["none", "crop-flip"] = "none"


@dataclass(frozen=True, eq=False)
class BenchSet:
    """Everything an owner would have, and the biased rows that they would not."""

    source: str
    """One sentence: which copy of the data was read."""
    target_names: tuple[str, ...]
    bias_names: dict[str, tuple[str, ...]]
    """Bias column to the names of its values, in the order of `Part.biases`."""
    train: Part
    """Biased rows of the vanilla network; disjoint from the others."""
    fit: Part
    select: Part
    report: Part
    net: str
    """A timm name."""
    training: Training
    audited: tuple[str, ...] = ()
    """Bias columns that are measured and not to be removed."""
