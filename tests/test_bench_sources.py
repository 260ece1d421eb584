"""Reading published files: MNIST, CIFAR-10, and what may be wrong with them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from surgeon.benchmarks.sources import CIFAR_NAMES, cifar10, mnist
from surgeon.errors import LabelError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGEON_DATA", str(tmp_path))
    return tmp_path


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def digits(root):
    """Three test digits, compressed, directly under the root."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.arange(3 * 784).reshape(3, 28, 28).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", np.array([7, 0, 9], np.uint8))):
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return folder


def test_digits_are_read_compressed_or_not(digits):
    found = mnist("test")
    assert found.labels.tolist() == [7, 0, 9]
    assert found.read(np.array([2, 0]))[:, 0, :2].tolist() == [[32, 33], [0, 1]]
    assert "not MNIST itself (3 in test)" in found.sentence
    for path in digits.iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert (mnist("test").read(np.arange(3)) == found.read(np.arange(3))).all()


IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, b"", r"cannot be read|announces"),
        (IMAGES, b"not compressed", r"cannot be read \(.*gzip"),
        (IMAGES, gzip.compress(bytes(2000))[:20], r"cannot be read"),
        (IMAGES, gzip.compress(b"\0\0\x08"), r"found 0 bytes"),
        (IMAGES, gzip.compress(idx(np.zeros((3, 28, 28), np.uint8))[:-1]), r"found 2351 bytes"),
        (IMAGES, gzip.compress(idx(np.zeros((3, 8, 8), np.uint8))), r"3 images of 8 x 8"),
        (IMAGES, gzip.compress(idx(np.zeros((0, 28, 28), np.uint8))), r"found 0 bytes"),
        (LABELS, gzip.compress(idx(np.zeros(2, np.uint8))), r"and 2 labels"),
        (LABELS, gzip.compress(idx(np.array([1, 2, 10], np.uint8))), r"labels up to 10"),
        (LABELS, gzip.compress(idx(np.zeros((3, 1), np.uint8))), r"expected unsigned bytes in 1"),
    ],
    # names of their own: gzip writes the time of day, and test processes must agree on names
    ids="nothing text cut header short small no-image few-labels label-10 dimensions".split(),
)
def test_broken_digits_raise_one_line(digits, file, content, message):
    (digits / file).write_bytes(content)
    with pytest.raises(LabelError, match=message) as caught:
        mnist("test")
    assert "\n" not in str(caught.value)
    assert "copy" in str(caught.value)


def test_missing_data_say_where_they_are_looked_for(root, monkeypatch):
    with pytest.raises(LabelError, match=r"no MNIST/raw/train-images-idx3-ubyte.gz in .* data"):
        mnist("train")
    with pytest.raises(LabelError, match=r"no cifar10-jpg/test.tar.gz.*cifar-10-batches-py"):
        cifar10("test")
    monkeypatch.delenv("SURGEON_DATA")
    with pytest.raises(LabelError, match="SURGEON_DATA: is not set"):
        mnist("train")


def jpeg(level, side=32):
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(stream, "JPEG")
    return stream.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def jpegs(root):
    """The JPEG copy with the first two images of three classes."""
    folder = root / "data" / "cifar10-jpg"
    folder.mkdir(parents=True)
    labels = {"train": np.arange(50_000) % 10, "test": np.arange(10_000)[::-1] % 10}
    np.savez(folder / "labels_in_original_order.npz", **labels)
    names = [(name, k) for name in CIFAR_NAMES[7:] for k in range(2)]
    images = {f"test/{name}/{k:04d}.jpg": jpeg(10 * i) for i, (name, k) in enumerate(names)}
    write_tar(folder / "test.tar.gz", images)
    return folder


def test_jpegs_come_in_original_order(jpegs):
    found = cifar10("test")
    assert found.labels[:3].tolist() == [9, 8, 7]
    # Positions 10 and 0 are the second and the first truck, 1 the first ship.
    levels = found.read(np.array([10, 0, 1, 0]))[:, 5, 5, 0].tolist()
    assert levels == pytest.approx([50, 40, 20, 40], abs=2)
    assert found.read(np.arange(0)).shape == (0, 32, 32, 3)
    assert "JPEG copy" in found.sentence


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"test/truck/0001.jpg": jpeg(0)}, r"1 of 1 images are missing, first test/truck/0000.jpg"),
        ({"test/truck/0000.jpg": b"no image"}, r"test/truck/0000.jpg is no image"),
        ({"test/truck/0000.jpg": jpeg(0, 16)}, r"has 16 x 16 pixels"),
        ({"test/truck/0000.jpg": jpeg(0)[:200]}, r"cannot be read|is no image"),
    ],
)
def test_broken_archives_raise_one_line(jpegs, members, message):
    write_tar(jpegs / "test.tar.gz", members)
    with pytest.raises(LabelError, match=message) as caught:
        cifar10("test").read(np.array([0]))
    assert "\n" not in str(caught.value)


def test_archives_that_are_none_raise_one_line(jpegs):
    for content in (b"", b"no archive", (jpegs / "test.tar.gz").read_bytes()[:200]):
        (jpegs / "test.tar.gz").write_bytes(content)
        with pytest.raises(LabelError, match=r"test.tar.gz: (cannot be read|.*missing)"):
            cifar10("test").read(np.array([0]))
    for arrays in ({"test": np.zeros(10_000)}, {"test": np.arange(10)}, {"train": np.arange(3)}):
        np.savez(jpegs / "labels_in_original_order.npz", **arrays)
        with pytest.raises(LabelError, match=r"labels_in_original_order.npz: "):
            cifar10("test")
    (jpegs / "labels_in_original_order.npz").write_bytes(b"PK")
    with pytest.raises(LabelError, match="cannot be read"):
        cifar10("test")


def test_damaged_original_files_are_not_replaced_by_the_copy(jpegs, root):
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({}))
    with pytest.raises(LabelError, match=r"cifar-10-batches-py: .*unpack"):
        cifar10("test")


@pytest.mark.skipif(
    not os.environ.get("SURGEON_DATA"), reason="SURGEON_DATA is not set: the folder with the data"
)
def test_real_copies_say_what_they_are():
    assert mnist("test").sentence == "MNIST, the original files"
    found = cifar10("test")
    assert found.sentence.startswith("CIFAR-10, ")
    assert found.labels[:6].tolist() == [3, 8, 8, 0, 6, 6]
    assert found.read(np.array([0, 1])).shape == (2, 32, 32, 3)
