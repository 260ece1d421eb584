from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import surgeon.images
from surgeon.data import Rows, extract, read_data
from surgeon.errors import LabelError, OptionError
from surgeon.groups import Groups
from surgeon.images import Images, read_images
from surgeon.labels import read_labels
from surgeon.preprocessing import Preprocessing, open_image

PREPROCESSING = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0, "center")
CPU = torch.device("cpu")


class ToySubject:
    num_classes = 2
    label_names = None
    preprocessing = PREPROCESSING
    device = CPU

    def forward(self, x, overrides=None):
        assert not torch.is_grad_enabled()
        features = x.mean((2, 3)) + (overrides or {}).get("shift", 0)
        return features, features[:, :2]


@pytest.fixture
def csv(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["path,target,bias"]
    for n in range(24):
        Image.fromarray(rng.integers(0, 256, (10, 9, 3), np.uint8)).save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png,{n % 2},{'rb'[n // 2 % 2]}")
    path = tmp_path / "val.csv"
    path.write_text("\n".join(lines))
    return path


def part(groups):
    """Rows of 1 x 1 images that hold their own number."""
    n = len(groups)
    kept = torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 3, 1, 1)
    labelled = Groups(
        torch.tensor(groups), torch.empty((n, 0), dtype=torch.int64), tuple("abcdef"), (), ()
    )
    return Rows(Images((b"",) * n, CPU, kept), labelled, torch.arange(n))


def test_parts_cover_the_file_with_their_own_groups_and_pixels(csv):
    data = read_data(ToySubject(), csv)
    assert [len(rows) for rows in (data.fit, data.select, data.report)] == [16, 4, 4]
    seen = torch.cat([data.fit.index, data.select.index, data.report.index])
    assert seen.sort().values.tolist() == list(range(24))
    assert data.select.groups.target.tolist() == [row % 2 for row in data.select.index.tolist()]
    for rows in (data.fit, data.report):
        picked = torch.tensor([2, 0])
        paths = [data.labels.paths[row] for row in rows.index[picked].tolist()]
        expected = [PREPROCESSING.transform()(open_image(path)) for path in paths]
        assert torch.equal(rows.batch(picked), torch.stack(expected))


def test_digest_is_that_of_size_and_pixels(csv):
    labels = read_labels(csv, num_classes=2, label_names=None)
    found = read_images(labels, PREPROCESSING, CPU, workers=3).digests
    pixels = np.asarray(open_image(labels.paths[5])).tobytes()
    assert found[5] == hashlib.sha256(b"9x10 " + pixels).digest()
    assert len(set(found)) == 24


def test_images_beyond_the_budget_are_decoded_again(csv, monkeypatch):
    kept = read_data(ToySubject(), csv).report
    monkeypatch.setattr(surgeon.images, "_BUDGET", 24 * 3 * 8 * 8 * 4 - 1)
    again = read_data(ToySubject(), csv, workers=2).report
    assert again.images.kept is None
    rows = torch.tensor([3, 1, 1])
    assert torch.equal(again.batch(rows), kept.batch(rows))
    assert torch.equal(again.index, kept.index)


def test_all_undecodable_images_are_listed(csv):
    for name in ("3.png", "7.png"):
        (csv.parent / name).write_bytes(b"no image")
    with pytest.raises(LabelError, match=r"2 of 24 images.*\n  row 5: .*3\.png.*\n  row 9: .*7"):
        read_data(ToySubject(), csv)


def test_a_large_image_is_no_warning(csv, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    assert len(read_data(ToySubject(), csv).fit) == 16


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_checked(csv, workers):
    with pytest.raises(OptionError, match="workers"):
        read_data(ToySubject(), csv, workers=workers)


def test_extract_runs_in_order_and_passes_overrides(csv):
    rows = read_data(ToySubject(), csv).fit
    outputs = extract(ToySubject(), rows, batch_size=5)
    x = rows.batch(torch.arange(len(rows)))
    torch.testing.assert_close(outputs.features, x.mean((2, 3)))
    assert torch.equal(outputs.logits, outputs.features[:, :2])
    moved = extract(ToySubject(), rows, overrides={"shift": torch.ones(3)})
    torch.testing.assert_close(moved.features, outputs.features + 1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 99))
def test_every_group_and_every_row_of_a_group_equally_often(groups, seed):
    rows = part(groups)
    order = rows.balanced_order(torch.Generator().manual_seed(seed), "groups").tolist()
    assert len(order) == len(groups)
    by_group = Counter(groups[row] for row in order)
    assert set(by_group) == set(groups)
    assert max(by_group.values()) - min(by_group.values()) <= 1
    times = Counter(order)
    for group in set(groups):
        shown = [times[row] for row in range(len(groups)) if groups[row] == group]
        assert max(shown) - min(shown) <= 1


def test_order_follows_the_generator():
    rows = part([0, 1, 1, 1, 1] * 4)
    first, again, other = (
        rows.balanced_order(torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
    plain = rows.balanced_order(torch.Generator(), "none").tolist()
    assert sorted(plain) == list(range(20)) != plain
    with pytest.raises(OptionError, match="expected groups or none"):
        rows.balanced_order(torch.Generator(), "classes")


@given(st.lists(st.floats(0, 9), min_size=1, max_size=60), st.integers(0, 99))
def test_rows_come_as_often_as_they_weigh(weights, seed):
    weights[0] += 0.1
    order = part([0] * len(weights)).weighted_order(
        torch.Generator().manual_seed(seed), torch.tensor(weights)
    )
    assert len(order) == len(weights)
    times, mean = Counter(order.tolist()), sum(weights) / len(weights)
    for row, weight in enumerate(weights):
        assert abs(times[row] - weight / mean) < 1 + 1e-4


@given(st.integers(1, 40), st.integers(1, 12))
def test_batches_are_even_and_an_epoch_has_no_single_row(n, size):
    rows = part([row % 2 for row in range(n)])
    in_order = list(rows.batches(size))
    assert torch.cat([picked for picked, _ in in_order]).tolist() == list(range(n))
    assert max(len(picked) for picked, _ in in_order) <= size
    epoch = list(rows.epoch(size, torch.Generator().manual_seed(0), "none"))
    lengths = [len(picked) for picked, _ in epoch]
    assert sum(lengths) == n
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= min(2, n)
    for picked, x in in_order + epoch:
        assert torch.equal(x[:, 0, 0, 0], picked.float())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_live_on_the_device_where_they_fit(csv, monkeypatch):
    subject = ToySubject()
    subject.device = torch.device("cuda")
    rows = read_data(subject, csv).fit
    assert rows.images.kept.is_cuda
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 0))
    small = read_data(subject, csv).fit
    assert not small.images.kept.is_cuda
    picked = torch.tensor([3, 0])
    assert small.batch(picked).is_cuda
    assert torch.equal(small.batch(picked), rows.batch(picked))
    assert not extract(subject, rows).features.is_cuda
