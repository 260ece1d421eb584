"""The moment a network errs most deeply, and the classes it then mistakes rows for."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from surgeon.architecture import Architecture
from surgeon.data import Outputs, Rows
from surgeon.discovery import Voronoi, moments, voronoi
from surgeon.discovery.moments import Moment, short_run
from surgeon.discovery.voronoi import border_distances
from surgeon.errors import ArtefactError, CheckpointError, IncompatibleError


def outputs(features, predicted, classes=3):
    logits = 4 * torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()
    return Outputs(torch.tensor(features), logits)


def test_distances_beyond_the_border_by_hand():
    # Means of well-classified rows: class 0 at (0, 2), class 1 at (4, 2); the border is x = 2.
    features = [[-1.0, 2.0], [1.0, 2.0], [4.0, 2.0], [3.5, 9.0], [1.0, 0.0], [0.0, 0.0]]
    found = border_distances(
        outputs(features, [0, 0, 1, 1, 1, 2]), torch.tensor([0, 0, 1, 0, 0, 2])
    )
    length = (2 + (16 + 4) ** 0.5) / 2
    # Row 3 lies 1.5 beyond, row 4 lies 1 on its own side; the last class is where it belongs.
    expected = [float("nan")] * 3 + [1.5 / length, -1 / length, float("nan")]
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


def test_a_class_without_well_classified_rows_has_no_border():
    found = border_distances(outputs([[1.0], [2.0], [3.0]], [0, 1, 0]), torch.tensor([0, 0, 1]))
    assert bool(found.isnan().all())


def moment(name, share):
    """Two classes on a line; four of their rows lie beyond the border by a share of it."""
    target = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    wrong = [0, 0, 1, 1, 1, 1, 0, 0]
    x = [-1.0, -1.0, share, share, 1.0, 1.0, -share, -share]
    return Moment(name, outputs([[value, 1.0] for value in x], wrong, classes=2)), target


def rows_with(toy, target):
    rows = toy.data.fit.groups.take(torch.arange(len(target)))
    groups = copy.copy(rows)
    object.__setattr__(groups, "target", target)
    return Rows(toy.data.fit.images, groups, torch.arange(len(target)))


def find(toy, monkeypatch, shares, over="run"):
    seen = []

    def given(*_, **__):
        for i, share in enumerate(shares):
            seen.append(i)
            yield moment(f"m{i}", share)[0]

    monkeypatch.setattr(voronoi, "short_run", given)
    monkeypatch.setattr(voronoi, "moments_of_folder", given)
    rows = rows_with(toy, moment("", 0.5)[1])
    return Voronoi(over=over).find(toy.subject, rows, rows), seen


def test_the_deepest_moment_counts_and_a_run_ends_past_it(toy, monkeypatch):
    shares = [0.2, 0.6, 0.5, 0.4, 0.3, 0.9]
    found, seen = find(toy, monkeypatch, shares)
    assert seen == [0, 1, 2, 3, 4]
    assert [record["chosen"] for record in found.history] == [False, True, False, False, False]
    assert found.history[1]["misclassified"] == 4
    assert found.history[1]["accuracy"] == 0.5
    assert found.values.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert found.names == ("0", "1")
    sure = float(torch.tensor([4.0, 0.0]).softmax(0)[0])
    assert found.confidence.tolist() == pytest.approx([sure] * 8)
    # The checkpoints of a folder are all looked at.
    found, seen = find(toy, monkeypatch, shares, over="folder")
    assert seen == list(range(6))
    assert found.history[5]["chosen"]


def test_a_network_without_errors_shows_nothing(toy):
    rows = rows_with(toy, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(IncompatibleError, match="no row that is taken for another class in 1 mom"):
        Voronoi(over="checkpoint").find(toy.subject, rows, rows)


@pytest.fixture
def buildable(toy, monkeypatch):
    """Let the toy's architecture be built anew."""
    monkeypatch.setattr(Architecture, "build", lambda _: type(toy.subject.net)())


def test_a_short_run_learns_the_colour_first(toy, lopsided, buildable):
    rows = lopsided.fit
    before, state = toy.subject.fingerprint(), torch.get_rng_state()
    found = Voronoi(seed=0).find(toy.subject, rows, rows)
    assert toy.subject.fingerprint() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert float((found.values == rows.groups.biases[:, 0]).float().mean()) > 0.95
    again = Voronoi(seed=0).find(toy.subject, rows, rows)
    assert torch.equal(again.values, found.values)
    assert again.history == found.history
    assert Voronoi(seed=1).find(toy.subject, rows, rows).history != found.history


def test_a_short_run_is_of_a_new_network(toy, lopsided, buildable, monkeypatch):
    monkeypatch.setattr(moments, "_MARKS", (1, 2))
    names, seen = zip(
        *((m.name, m.outputs) for m in short_run(toy.subject, lopsided.fit, lopsided.fit, seed=0)),
        strict=True,
    )
    assert names == ("step 1", "step 2")
    assert not torch.allclose(seen[0].logits, seen[1].logits)
    right = seen[0].logits.argmax(1) == lopsided.fit.groups.target
    assert float(right.float().mean()) < 0.8  # the given network has 0.94


def test_checkpoints_of_a_folder_in_the_order_of_their_numbers(toy, tmp_path):
    tensors = {name: value.contiguous() for name, value in toy.subject.tensors().items()}
    for number in (2, 10, 1):
        changed = {**tensors, "fc.bias": tensors["fc.bias"] + number}
        save_file(changed, tmp_path / f"epoch-{number}.safetensors")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    rows = toy.data.fit
    found = list(moments.moments_of_folder(toy.subject, rows, tmp_path))
    assert [m.name for m in found] == [f"epoch-{number}.safetensors" for number in (1, 2, 10)]
    torch.testing.assert_close(
        found[2].outputs.logits - found[0].outputs.logits, torch.full((400, 2), 9.0)
    )
    save_file({"fc.bias": tensors["fc.bias"]}, tmp_path / "epoch-3.safetensors")
    with pytest.raises(CheckpointError, match=r"epoch-3.safetensors: \d+ keys do not fit"):
        Voronoi(over=tmp_path).find(toy.subject, rows, rows)
    with pytest.raises(ArtefactError, match="holds no checkpoint"):
        Voronoi(over=tmp_path / "none").find(toy.subject, rows, rows)
