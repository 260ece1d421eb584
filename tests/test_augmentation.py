"""Rows are mirrored and shifted where the given network does not mind, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon.measure import Measures
from surgeon.methods import FFW, Finetune
from surgeon.methods.augmentation import Augmentation, harmless, mirrored, shifted
from surgeon.operate import operate

SIDE = 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Halves(nn.Module):
    """Mean of every half along rows and columns, and of even and odd rows, per channel."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(18, 2)

    def forward(self, x):
        half = x.shape[2] // 2
        parts = (x[..., :half], x[..., half:], x[:, :, :half], x[:, :, half:])
        means = [part.mean((2, 3)) for part in (*parts, x[:, :, ::2], x[:, :, 1::2])]
        return self.fc(torch.cat(means, 1))


def told_by(where, n, seed, lean=0.5, light=1.0):
    """Images whose target is which half is bright, along `where`, and whose bias is a colour."""
    generator = seeded(seed)
    target = torch.randint(2, (n,), generator=generator)
    bias = torch.where(torch.rand(n, generator=generator) < lean, target, 1 - target)
    x = 0.5 * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    x[:, 0] += 0.5 * bias[:, None, None]
    half = {"left": (2, 3), "top": (1, 2), "rows": None}[where]
    for image, value in zip(x, target.tolist(), strict=True):
        if half is None:
            image[1, value::2] += light
        else:
            image[1].unflatten(half[0] - 1, (2, -1)).select(half[0] - 1, value).add_(light)
    return x, target, bias


@pytest.fixture
def shown(pico, rows_of):
    """Return a function that gives network and rows of one kind of target."""

    def make(where, fit=300, select=200, **kind):
        parts = {"fit": fit, "select": select, "report": 20}
        rows = {
            name: told_by(where, n, seed, **kind) for seed, (name, n) in enumerate(parts.items())
        }
        return pico(Halves, SIDE), rows_of(rows)

    return make


@pytest.mark.parametrize(
    ("where", "found"),
    [("left", (False, True)), ("top", (True, True)), ("rows", (True, False))],
)
def test_what_would_change_the_target_is_left_out(shown, where, found):
    chosen = harmless(*shown(where), seed=0)
    assert (chosen.mirror, chosen.shift) == found


def test_a_colour_that_goes_with_the_target_does_not_speak_for_it(shown):
    """A reader of the colour knows nothing of groups that count equally, and would find no harm."""
    rows = {"fit": 600, "select": 400, "lean": 0.97, "light": 0.2}
    assert harmless(*shown("top", **rows), seed=0).mirror
    assert not harmless(*shown("left", **rows), seed=0).mirror


def test_a_few_rows_prove_nothing(shown):
    assert harmless(*shown("top", select=16), seed=0) == Augmentation()
    assert harmless(*shown("top", fit=2), seed=0) == Augmentation()


def test_one_target_alone_proves_nothing(shown, rows_of):
    subject, _ = shown("top")
    x, target, bias = told_by("top", 100, 0)
    data = rows_of(dict.fromkeys(("fit", "select", "report"), (x, torch.zeros_like(target), bias)))
    assert harmless(subject, data, seed=0) == Augmentation()


def test_every_second_image_is_mirrored():
    x = torch.rand(400, 3, 4, 6)
    changed = Augmentation(mirror=True)(x, seeded())
    same, turned = ((changed == other).flatten(1).all(1) for other in (x, x.flip(3)))
    assert bool((same ^ turned).all())
    assert 160 < int(turned.sum()) < 240
    assert torch.equal(mirrored(x), x.flip(3))


def test_images_are_shifted_by_an_eighth_at_most_and_reflected_at_the_rim():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(8.0), indexing="ij")
    x = torch.stack([rows, columns, rows + columns]).expand(500, 3, 16, 8)
    changed = shifted(x, seeded())
    # Where each image's fifth row and column come from.
    down, right = changed[:, 0, 5, 0] - 5, changed[:, 1, 0, 5] - 5
    assert set(down.tolist()) == {-2, -1, 0, 1, 2}
    assert set(right.tolist()) == {-1, 0, 1}
    image = changed[(down == -2) & (right == 1)][0]
    assert image[0, :, 0].tolist() == [2, 1, *range(14)]
    assert image[1, 0].tolist() == [*range(1, 8), 6]
    assert torch.equal(image[2], image[0] + image[1])


def test_nothing_changed_leaves_the_draw_alone():
    x, generator = torch.rand(4, 3, 4, 4), seeded()
    assert Augmentation()(x, generator) is x
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=seeded()))


@pytest.mark.parametrize(
    ("augmentation", "name"),
    [
        (Augmentation(), "none"),
        (Augmentation(mirror=True), "mirrored"),
        (Augmentation(shift=True), "shifted"),
        (Augmentation(mirror=True, shift=True), "mirrored and shifted"),
    ],
)
def test_it_is_named(augmentation, name):
    assert str(augmentation) == name


@pytest.mark.parametrize(
    ("method", "changed"),
    [(FFW(epochs=1), True), (Finetune(epochs=1), True), (FFW(epochs=1, recipe="paper"), False)],
)
def test_the_network_is_shown_changed_rows_while_it_is_edited(toy, monkeypatch, method, changed):
    given = {image.numpy().tobytes() for image in toy.data.fit.batch(torch.arange(400))}
    seen, forward = [], type(toy.subject).forward

    def watched(self, x, overrides=None):
        if torch.is_grad_enabled() and overrides:
            seen.extend(image.numpy().tobytes() for image in x)
        return forward(self, x, overrides)

    monkeypatch.setattr(type(toy.subject), "forward", watched)
    records = []
    method.fit(toy.subject, toy.data, progress=records.append)
    assert len(seen) == 400
    assert (len(given.intersection(seen)) < 300) is changed
    assert records[-1]["augmentation"] == ("mirrored" if changed else "none")


def test_the_report_says_so(toy, spared):
    measures = Measures(mlp=False)
    for recipe, told in (("default", 1), ("paper", 0)):
        done = operate(toy.subject, toy.data, FFW(recipe=recipe, epochs=1), measures=measures)
        said = [note for note in done.report.notes if note.startswith("fit rows were mirrored at")]
        assert len(said) == told
