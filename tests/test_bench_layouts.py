"""Published data sets in their own layouts: labels as they stand there, faults told together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from surgeon_cli.main import app
from typer.testing import CliRunner

from surgeon import ArtefactError, LabelError
from surgeon.benchmarks.layouts import (
    read_celeba,
    read_imdb,
    read_waterbirds,
    waterbirds,
    write_label_csv,
)
from surgeon.labels import read_labels


def write_celeba(root, attributes=None, partition=None):
    (root / "img_align_celeba").mkdir(exist_ok=True)
    lines = ["3", "Bald Blond_Hair Male ", "000001.jpg -1  1 -1", "000002.jpg -1 -1  1"]
    lines += ["000003.jpg  1 -1 -1"]
    (root / "list_attr_celeba.txt").write_text("\n".join(attributes or lines) + "\n")
    for line in lines[2:]:
        (root / "img_align_celeba" / line.split()[0]).touch()
    partition = partition or ["000001.jpg 0", "000002.jpg 1", "000003.jpg 2"]
    (root / "list_eval_partition.txt").write_text("\n".join(partition))
    return lines


def test_celeba_becomes_a_label_file(tmp_path):
    write_celeba(tmp_path)
    found = read_celeba(tmp_path)
    assert [tuple(row) for row in found.rows] == [
        ("img_align_celeba/000001.jpg", "blond", "female", "train"),
        ("img_align_celeba/000002.jpg", "not blond", "male", "val"),
        ("img_align_celeba/000003.jpg", "not blond", "female", "test"),
    ]
    assert "found 3 rows, the full set has 202599" in found.notes[0]
    write_label_csv(found.rows, tmp_path / "labels.csv")
    labels = read_labels(tmp_path / "labels.csv", num_classes=2, label_names=("not blond", "blond"))
    assert labels.split == ("fit", "select", "report")
    assert labels.groups.target.tolist() == [1, 0, 0]
    assert labels.groups.value_names == (("female", "male"),)


def test_celeba_of_another_attribute(tmp_path):
    lines = ["1", "Heavy_Makeup Male", "000001.jpg 1 -1"]
    write_celeba(tmp_path, lines)
    found = read_celeba(tmp_path, target="Heavy_Makeup")
    assert found.rows == (("img_align_celeba/000001.jpg", "makeup", "female", "train"),)
    assert found.notes[0].endswith("published group counts not checked")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, "4"), "line 1 announces 4 images, found 3"),
        ((0, "three"), "found no count"),
        ((1, "Bald Blond Male"), "no Blond_Hair in line 2"),
        ((2, "000001.jpg -1 1"), "line 3: 3 fields"),
        ((2, "000001.jpg -1 0 -1"), "another attribute than 1 and -1"),
        ((2, "../x.jpg -1 1 -1"), r"'../x.jpg', expected the name of an image"),
        ((2, "000003.jpg -1 1 -1"), "line 5: '000003.jpg', expected the name of an image not"),
        ((2, "000009.jpg -1 1 -1"), "has no split in list_eval"),
    ],
)
def test_broken_attributes_are_listed(tmp_path, change, message):
    lines = write_celeba(tmp_path)
    lines[change[0]] = change[1]
    write_celeba(tmp_path, attributes=lines)
    with pytest.raises(LabelError, match=message):
        read_celeba(tmp_path)


def test_missing_or_broken_celeba_files(tmp_path):
    with pytest.raises(LabelError, match="img_align_celeba: no such folder"):
        read_celeba(tmp_path)
    write_celeba(tmp_path, partition=["000001.jpg 3"])
    with pytest.raises(LabelError, match=r"line 1: '000001.jpg 3', expected"):
        read_celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(LabelError, match=r"list_eval_partition.txt: cannot be read"):
        read_celeba(tmp_path)
    for content, message in ((b"", "is empty"), (b"\xff\xfe", "is not text")):
        (tmp_path / "list_attr_celeba.txt").write_bytes(content)
        with pytest.raises(LabelError, match=message):
            read_celeba(tmp_path)


HEADER = "img_id,img_filename,y,split,place,place_filename"


def write_waterbirds(root, rows):
    lines = [HEADER, *(f"{i},{row},x.jpg" for i, row in enumerate(rows))]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_waterbirds_are_read_and_counted(tmp_path):
    write_waterbirds(tmp_path, ["a/1.jpg,0,0,1", "a/2.jpg,1,2,0"])
    found = read_waterbirds(tmp_path)
    assert [tuple(row) for row in found.rows] == [
        ("a/1.jpg", "landbird", "water", "train"),
        ("a/2.jpg", "waterbird", "land", "test"),
    ]
    assert "full set has 11788; published group counts not checked" in found.notes[0]
    turned = read_waterbirds(tmp_path, target="place").rows
    assert turned[0] == ("a/1.jpg", "water", "landbird", "train")
    whole = [
        f"{split}-{group}-{i}.jpg,{group // 2},{split},{group % 2}"
        for split, counts in enumerate(waterbirds._WATERBIRDS.values())
        for group, count in enumerate(counts)
        for i in range(count)
    ]
    write_waterbirds(tmp_path, whole)
    assert read_waterbirds(tmp_path).notes == ()
    write_waterbirds(tmp_path, [*whole[:-1], "other.jpg,0,2,0"])
    with pytest.raises(LabelError, match="2 groups differ") as caught:
        read_waterbirds(tmp_path)
    assert "test, landbird, land: found 2256, expected 2255" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,2,0,0", "row 3: y '2', expected 0 or 1"),
        ("a.jpg,0,0,x", "row 3: place 'x'"),
        ("a.jpg,0,5,0", "row 3: split '5', expected 0 or 1 or 2"),
        ("/etc/a.jpg,0,0,0", "path '/etc/a.jpg' leaves"),
        ("b.jpg,0,0,0", "image 'b.jpg' stands in an earlier row too"),
        (",0,0,0", "column 'img_filename' is blank"),
        ("a.jpg,0,0", "5 fields, expected 6"),
    ],
)
def test_broken_metadata_are_listed(tmp_path, row, message):
    write_waterbirds(tmp_path, ["b.jpg,0,0,0", row])
    with pytest.raises(LabelError, match=message):
        read_waterbirds(tmp_path)


# IMDB faces.


def save(path, content):
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def write_imdb(root, people, **lists):
    """Write people, name to age and gender, and the lists of the parts."""
    (root / "imdb_crop").mkdir(exist_ok=True)
    known = {name.encode(): {"age": np.int64(a), "gender": g} for name, (a, g) in people.items()}
    save(root / "imdb_age_gender.npy", known)
    save(root / "imdb_split.npy", {"train_list": [], "test_list": lists.get("test", [])})
    for part in ("eb1", "eb2"):
        np.save(root / f"{part}_img_list.npy", np.array(lists.get(part, [])))


PEOPLE = {"01/a.jpg": (20, 0), "01/b.jpg": (50.0, 1), "02/c.jpg": (29, 1), "02/d.jpg": (40, 0)}


def test_imdb_becomes_a_label_file(tmp_path):
    many = {f"03/{i}.jpg": (20, 0) for i in range(200)}
    lists = {"eb1": ["01/a.jpg", "01/b.jpg", *many], "eb2": ["02/c.jpg"], "test": ["02/d.jpg"]}
    write_imdb(tmp_path, PEOPLE | many, **lists)
    rows = read_imdb(tmp_path, "eb1", "eb2").rows
    assert rows[0] == ("imdb_crop/01/a.jpg", "female", "below 30", "train")
    assert rows[1][:3] == ("imdb_crop/01/b.jpg", "male", "above 39")
    assert rows[-1] == ("imdb_crop/02/c.jpg", "male", "below 30", "test")
    assert 10 <= sum(row.split == "val" for row in rows) <= 30
    assert read_imdb(tmp_path, "eb1", "test").rows[-1] == (
        ("imdb_crop/02/d.jpg", "female", "above 39", "test")
    )
    assert [row.path for row in read_imdb(tmp_path, "eb2", "eb1").rows][:2] == [
        "imdb_crop/02/c.jpg",
        "imdb_crop/01/a.jpg",
    ]


@pytest.mark.parametrize(
    ("people", "eb1", "message"),
    [
        ({"a.jpg": (35, 0)}, ["a.jpg"], "found age 35.0 and gender 0.0, expected 0 to 29 or 40"),
        ({"a.jpg": (20, 2)}, ["a.jpg"], "found age 20.0 and gender 2.0"),
        ({"a.jpg": (20, float("nan"))}, ["a.jpg"], "gender nan"),
        ({"a.jpg": (20, 0)}, ["b.jpg"], "eb1: 'b.jpg' has no age and gender"),
        ({"a.jpg": (20, 0)}, ["a.jpg", "a.jpg"], "'a.jpg', expected an image not named before"),
        ({"../a.jpg": (20, 0)}, ["../a.jpg"], "'../a.jpg', expected an image"),
        ({"a.jpg": (20, 0)}, [], "eb1_img_list.npy: holds no list of images"),
        ({"a.jpg": (None, 0)}, ["a.jpg"], "'a.jpg': expected an age and a gender"),
    ],
)
def test_broken_faces_are_listed(tmp_path, people, eb1, message):
    write_imdb(tmp_path, {}, eb1=eb1, eb2=["c.jpg"])
    known = {name: {"age": age, "gender": sex} for name, (age, sex) in people.items()}
    save(tmp_path / "imdb_age_gender.npy", {**known, "c.jpg": {"age": 20, "gender": 1}})
    with pytest.raises(LabelError, match=re.escape(message)):
        read_imdb(tmp_path, "eb1", "eb2")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_face_labels_run_no_code(tmp_path):
    write_imdb(tmp_path, PEOPLE, eb1=["01/a.jpg"], eb2=["02/c.jpg"])
    labels = tmp_path / "imdb_age_gender.npy"
    save(labels, {"01/a.jpg": Trap(tmp_path / "sprung")})
    with pytest.raises(LabelError, match=r"imdb_age_gender.npy: cannot be used \(refused"):
        read_imdb(tmp_path, "eb1", "eb2")
    assert not (tmp_path / "sprung").exists()
    for content in (b"", b"no array", labels.read_bytes()[:90]):
        labels.write_bytes(content)
        with pytest.raises(LabelError, match="copy it again"):
            read_imdb(tmp_path, "eb1", "eb2")
    labels.unlink()
    with pytest.raises(LabelError, match="cannot be read"):
        read_imdb(tmp_path, "eb1", "eb2")
    with pytest.raises(LabelError, match="imdb_crop: no such folder"):
        read_imdb(tmp_path / "elsewhere", "eb1", "eb2")


# All of them.


def test_a_label_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match=r"labels.csv"):
        write_label_csv([], tmp_path / "file" / "labels.csv")


def test_one_command_writes_the_labels(tmp_path):
    write_waterbirds(tmp_path, ["a/1.jpg,0,0,1"])
    run = CliRunner().invoke(app, ["bench", "labels", "waterbirds-place", str(tmp_path)])
    assert run.exit_code == 0, run.stderr
    written = tmp_path / "waterbirds-place.csv"
    assert run.stdout == f"{written}\n"
    assert "note: " in run.stderr
    lines = "path,target,bias,split\na/1.jpg,water,landbird,train\n"
    assert written.read_text() == lines
    unknown = CliRunner().invoke(app, ["bench", "labels", "imagenet", str(tmp_path)])
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("error: name: found 'imagenet', expected one of celeba, ")
