"""Vanilla networks: training, augmentation, and what is kept by content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from surgeon.benchmarks import vanilla
from surgeon.benchmarks.nets import SmallConvNet
from surgeon.benchmarks.protocol import Training
from surgeon.benchmarks.vanilla import cached, cropped, draw_crops, fingerprint, train
from surgeon.errors import ArtefactError
from tests.tiny_bench import RECIPE, SETTING, part_of, tiny_set


def test_one_cycle_training_is_the_plain_loop():
    bench, epochs, size = tiny_set(SETTING), RECIPE.epochs, RECIPE.batch_size
    bench = replace(bench, train=part_of(150, 0.9, 5))
    part = bench.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = SmallConvNet(2).train()
    generator = torch.Generator().manual_seed(7)
    x = part.images.float() / 127.5 - 1
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    steps = epochs * (len(x) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // size * size].split(size):
            optimiser.zero_grad()
            cross_entropy(net(x[rows]), part.target[rows]).backward()
            optimiser.step()
            schedule.step()
    before, records = torch.get_rng_state(), []
    state = train(bench, seed=7, progress=records.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {"epoch", "epochs", "task_loss", "seconds_left"}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("steps", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", [(1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]),
    ],
)
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_schedules(monkeypatch, schedule, rates, optimiser):
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser]
    seen, step = [], kind.step

    def note(self, *args):
        assert type(self) is kind
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(kind, "step", note)
    recipe = Training(optimiser=optimiser, lr=0.01, epochs=4, batch_size=64, schedule=schedule)
    train(replace(tiny_set(SETTING), training=recipe), seed=0)
    assert seen == pytest.approx([0.01 * rate for rate in rates])


def test_crops_are_shifts_and_mirrors_on_black():
    images = torch.randint(1, 256, (60, 3, 8, 6), dtype=torch.uint8)
    made = cropped(images, *draw_crops(60, (8, 6), torch.Generator().manual_seed(0)))
    assert made.dtype == torch.uint8
    padded = torch.zeros(60, 3, 16, 14, dtype=torch.uint8)
    padded[:, :, 4:12, 4:10] = images
    found = set()
    for i in range(60):
        for row in range(9):
            for column in range(9):
                crop = padded[i, :, row : row + 8, column : column + 6]
                for mirrored in (False, True):
                    if torch.equal(made[i], crop.flip(2) if mirrored else crop):
                        found.add((i, row, column, mirrored))
    assert {i for i, *_ in found} == set(range(60))
    assert {row for _, row, _, _ in found} == {column for _, _, column, _ in found} == set(range(9))
    assert 15 < sum(mirrored for *_, mirrored in found) < 45
    plain = cropped(images, *draw_crops(60, (8, 6), torch.Generator().manual_seed(1)))
    assert not torch.equal(plain, made)


def test_augmentation_is_used_and_seeded():
    bench = tiny_set(SETTING)
    augmented = replace(bench, training=replace(RECIPE, augment="crop-flip"))
    states = [train(b, seed=s)["fc.weight"] for b, s in ((bench, 0), (augmented, 0))]
    assert not torch.equal(*states)
    assert torch.equal(states[1], train(augmented, seed=0)["fc.weight"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_cuda_replays_learns_as_the_cpu_does():
    bench = replace(tiny_set(SETTING), training=replace(RECIPE, augment="crop-flip"))
    losses, states = [], []
    for device in ("cuda", "cpu"):
        records = []
        states.append(train(bench, seed=0, device=device, progress=records.append))
        losses.append([record["task_loss"] for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    counts = [{n: t for n, t in state.items() if n.endswith("tracked")} for state in states]
    assert counts[0] == counts[1]
    assert all(state["fc.weight"].isfinite().all() for state in states)


def test_networks_are_kept_by_content(tmp_path, monkeypatch):
    trained = []

    def spy(bench, **options):
        trained.append(options["seed"])
        return train(bench, **options)

    monkeypatch.setattr(vanilla, "train", spy)
    bench = tiny_set(SETTING)
    first = cached(bench, tmp_path, seed=0)
    other_rows = replace(bench, fit=bench.report, bias_names={"other": ("a", "b")})
    again = cached(other_rows, tmp_path, seed=0)
    assert trained == [0]
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    (path,) = (tmp_path / "vanilla").iterdir()
    assert path.name == f"{fingerprint(bench, 0)[:16]}.safetensors"
    images = bench.train.images.clone()
    images[0, 0, 0, 0] ^= 1
    changed = replace(bench, train=replace(bench.train, images=images))
    cached(changed, tmp_path, seed=0)
    cached(bench, tmp_path, seed=1)
    cached(replace(bench, training=replace(RECIPE, lr=0.05)), tmp_path, seed=0)
    assert trained == [0, 0, 1, 0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtefactError, match="is damaged; delete it"):
        cached(bench, tmp_path, seed=0)
    assert len(list((tmp_path / "vanilla").iterdir())) == 4
