"""Settings and toys for all tests."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import settings
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from surgeon.architecture import Architecture
from surgeon.data import Data, Rows, extract
from surgeon.findings import ProbeScore
from surgeon.groups import Groups, Labels
from surgeon.head import find_head
from surgeon.images import Images
from surgeon.methods import FFW, VCBA, ClusterFix
from surgeon.methods.base import device_changes
from surgeon.methods.training import Pass, Training
from surgeon.preprocessing import Preprocessing
from surgeon.probes import Prober
from surgeon.subject import Subject, freeze

# A busy machine is no failure, and a failure comes back on the next run.
settings.register_profile("surgeon", deadline=None, derandomize=True, database=None)
settings.load_profile("surgeon")
# Small tensors gain nothing from threads, and equal thread counts give equal bits.
torch.set_num_threads(1)
# Processes that tests start inherit it: several with a thread per core each wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"

SIDE, BAR = 12, 6


class TinyNet(nn.Module):
    """Three convolutions with BatchNorm, mean pool, linear head."""

    def __init__(self, num_classes=2):
        super().__init__()
        layers = []
        for before, after in ((3, 12), (12, 16), (16, 24)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if after < 24 else []
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


@torch.no_grad()
def roughen(net: nn.Module) -> nn.Module:
    """Give scales, shifts and running statistics values that no unit gate leaves unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for name, value in net.state_dict().items():
        if value.dim() == 1 and name.endswith(("weight", "gamma", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.dim() == 1 or (value.dim() and not value.any()):  # heads may start at zero
            value.normal_(0, 0.1, generator=generator)
    return net


@dataclass(frozen=True)
class Toy:
    """A subject that leans on a colour, and labelled rows without that correlation."""

    subject: Subject
    data: Data


def subject_of(net: nn.Module, side: int, library: str = "factory", name: str = "toy:net"):
    """Wrap a network as if it had been loaded."""
    prepared = Preprocessing((3, side, side), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center")
    net = freeze(net)
    head = find_head(net, prepared.input_size)
    classes = len(head.weight(net.state_dict()))
    architecture = Architecture(library, name, classes)
    return Subject(net, head, architecture, prepared, None, Path("toy.safetensors"), "0" * 64)


def data_of(parts: dict[str, tuple[Tensor, Tensor, Tensor]], num_classes=2, num_values=2) -> Data:
    """Make the data of images, targets and biases per part."""
    x, y, b = (torch.cat([part[i] for part in parts.values()]) for i in range(3))
    names = tuple(str(i) for i in range(max(num_classes, num_values)))
    biases = b if b.dim() == 2 else b[:, None]
    columns = tuple(f"bias{k}" if k else "bias" for k in range(biases.shape[1]))
    groups = Groups(y, biases, names[:num_classes], columns, (names[:num_values],) * len(columns))
    images = Images((b"",) * len(x), torch.device("cpu"), x)
    spans = torch.arange(len(x)).split([len(part[1]) for part in parts.values()])
    rows = {
        name: Rows(images, groups.take(span), span) for name, span in zip(parts, spans, strict=True)
    }
    paths = tuple(Path(f"{row}.png") for row in range(len(x)))
    labels = Labels(Path("toy.csv"), paths, groups, None, (), ())
    return Data(**rows, labels=labels)


def bars(n: int, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw bars: lying or standing is the target, a reddish or bluish ground the bias."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < share
    bias = torch.where(same, target, 1 - target)
    x = 0.4 * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    x[:, 0] += 0.5 * (1 - bias)[:, None, None]
    x[:, 2] += 0.5 * bias[:, None, None]
    start = torch.randint(SIDE - BAR, (n, 2), generator=generator)
    for i, (row, column) in enumerate(start.tolist()):
        lying = bool(target[i])
        high, wide = (1, BAR) if lying else (BAR, 1)
        x[i, :, row : row + high, column : column + wide] += 0.8
    return x, target, bias


def train(net: nn.Module, x: Tensor, target: Tensor, epochs: int) -> nn.Module:
    """Train a network the ordinary way, seeded."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(50):
            optimiser.zero_grad()
            cross_entropy(net(x[rows]), target[rows]).backward()
            optimiser.step()
    return net


@pytest.fixture(scope="session")
def toy() -> Toy:
    """Train a tiny network on bars whose colour goes with their direction."""
    x, target, _ = bars(600, 0.97, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = train(TinyNet(), x, target, 6)
    parts = {"fit": bars(400, 0.5, 1), "select": bars(160, 0.5, 2), "report": bars(600, 0.5, 3)}
    return Toy(subject_of(net, SIDE), data_of(parts))


def bound(n, share, seed):
    """Bars, a third of which are green: those are a class of their own, whatever their way."""
    x, target, bias = bars(n, share, seed)
    green = torch.arange(n) % 3 == 0
    x[green, 1] += 0.5
    return x, torch.where(green, 2, target), torch.where(green, 2, bias)


@pytest.fixture(scope="session")
def planted() -> Toy:
    """Train a network on three classes, the third of which is its colour and nothing else."""
    x, target, _ = bound(600, 0.9, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = train(TinyNet(3), x, target, 12)
    parts = {"fit": bound(400, 0.5, 1), "select": bound(200, 0.5, 2), "report": bound(600, 0.5, 3)}
    return Toy(subject_of(net, SIDE), data_of(parts, 3, 3))


@pytest.fixture(scope="session")
def small(toy) -> Toy:
    """The toy with few rows, for tests that fit and do not measure."""
    return replace(toy, data=data_of({name: bars(48, 0.5, 7) for name in _PARTS}))


_PARTS = ("fit", "select", "report")


@pytest.fixture(scope="session")
def lopsided(toy) -> Data:
    """The toy's data with a tenth of the fit rows that go against their colour."""
    fit = toy.data.fit
    against = fit.groups.target != fit.groups.biases[:, 0]
    kept = (~against | (against.cumsum(0) % 10 == 0)).nonzero().flatten()
    return replace(toy.data, fit=Rows(fit.images, fit.groups.take(kept), fit.index[kept]))


@pytest.fixture
def small_steps(monkeypatch):
    """Step by Adam, unaveraged: after a few such epochs the weight of a row shows."""
    plain = {"optimiser": "adam", "warm_up": 0.0, "average": 0.0}
    for method in (Training, VCBA, ClusterFix):
        monkeypatch.setattr(method, "default", replace(method.default, **plain))


@pytest.fixture(scope="session")
def worst_group():
    """Return a function that measures an edit's worst group on report rows."""

    def measure(toy, edit) -> float:
        rows = toy.data.report
        logits = extract(toy.subject, rows, overrides=device_changes(toy.subject, edit)).logits
        right = logits.argmax(1) == rows.groups.target
        return min(float(right[rows.groups.index == group].float().mean()) for group in range(4))

    return measure


@pytest.fixture(scope="session")
def pass_of():
    """Return a function that passes some fit rows through trainable copies of the weights."""

    def make(toy, rows, passed=0.5) -> tuple[Pass, dict[str, Tensor]]:
        net, x = toy.subject.net, toy.data.fit.batch(rows)
        weights = {n: w.detach().clone().requires_grad_() for n, w in net.named_parameters()}
        features, logits = toy.subject.forward(x, weights)
        head = partial(linear, weight=weights["fc.weight"], bias=weights["fc.bias"])
        return Pass(rows, features, logits, head, passed), weights

    return make


@pytest.fixture(scope="session")
def pico():
    """Return a function that makes an untrained subject of a timm name, or of a module."""

    def make(net, side=64, **model_args) -> Subject:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if isinstance(net, str):
                built = timm.create_model(net, pretrained=False, num_classes=3, **model_args)
                return subject_of(roughen(built), side, "timm", net)
            return subject_of(roughen(net()), side)

    return make


@pytest.fixture(scope="session")
def rows_of():
    """Return the function that makes data of images, targets and biases per part."""
    return data_of


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Make a folder as an owner has it: untrained network, 60 images, two biases. Copy it."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "images").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("test_efficientnet", pretrained=False, num_classes=2)
    save_file(net.state_dict(), folder / "model.safetensors", {"format": "pt"})
    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 2}
    shape |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    config = {"architecture": "test_efficientnet", "num_classes": 2, "pretrained_cfg": shape}
    (folder / "config.json").write_text(json.dumps({**config, "label_names": ["cat", "dog"]}))
    generator = torch.Generator().manual_seed(0)
    lines = ["path,target,bias,age"]
    for i in range(60):
        target, bias, age = i % 2, i // 2 % 2, i // 4 % 2
        pixels = torch.randint(60, (32, 32, 3), dtype=torch.uint8, generator=generator)
        pixels[..., 0] += 120 * bias
        pixels[:16, :, 1] += 120 * target
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{i}.png")
        names = ("cat", "dog")[target], ("blue", "red")[bias], ("old", "young")[age]
        lines.append(",".join([f"images/{i}.png", *names]))
    (folder / "val.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def spared(monkeypatch):
    """Spare probes and pages, which take most of the time, where they are not looked at."""
    score = ProbeScore(0.5, 0.4, 0.6, 0.5, 80, True)
    monkeypatch.setattr(Prober, "score", lambda *_, **__: score)
    monkeypatch.setattr("surgeon.report.write_page", lambda _: None)


@pytest.fixture
def always_masked(monkeypatch):
    """Keep the mask of a search that is too short to beat a new head alone."""
    monkeypatch.setattr(FFW, "_with_best_head", lambda self, subject, data, masked, _: masked)
