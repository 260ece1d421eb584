from __future__ import annotations

import re
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.errors import LabelError
from surgeon.labels import read_labels

GOOD = [("a.png", "0", "red"), ("b.png", "1", "blue"), ("c.png", "1", "red")]


def write(folder, rows=GOOD, header="path,target,bias", name="val.csv", touch=True):
    separator = "\t" if "\t" in header else ","
    path = folder / name
    path.write_text("\n".join([header, *(separator.join(row) for row in rows)]) + "\n", "utf-8")
    for row in rows if touch else ():
        image = folder / row[0]
        if row[0] and not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    return path


def read(csv, *, num_classes=2, label_names=None, **options):
    return read_labels(csv, num_classes=num_classes, label_names=label_names, **options)


def test_reads_rows_in_order(tmp_path):
    labels = read(write(tmp_path))
    assert [path.name for path in labels.paths] == ["a.png", "b.png", "c.png"]
    assert labels.groups.target.tolist() == [0, 1, 1]
    assert labels.groups.biases.tolist() == [[1], [0], [1]]
    assert labels.groups.value_names == (("blue", "red"),)
    assert labels.groups.target_names == ("0", "1")
    assert labels.rows == (2, 3, 4)
    assert labels.split is None


def test_byte_order_mark_tabs_blank_lines_and_quoted_line_ends(tmp_path):
    write(tmp_path)
    csv = tmp_path / "val.tsv"
    csv.write_bytes(
        b'\xef\xbb\xbfpath\ttarget\tbias\tnote\r\n\r\na.png\t0 \tred\t"two\nlines"\r\n'
        b"b.png\t1\tNA\t\r\n"
    )
    labels = read(csv)
    assert labels.rows == (3, 5)
    assert labels.groups.value_names == (("NA", "red"),)
    assert read(csv.rename(tmp_path / "tabs.csv")).rows == (3, 5)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["10", "9", "09"], ("9", "10")),
        (["10", "9", "9.0"], ("10", "9", "9.0")),
        (["-1", "1", "0"], ("-1", "0", "1")),
    ],
)
def test_order_of_bias_values(tmp_path, values, names):
    rows = [(*row[:2], value) for row, value in zip(GOOD, values, strict=True)]
    assert read(write(tmp_path, rows)).groups.value_names == (names,)


@pytest.mark.parametrize(
    ("targets", "label_names", "expected", "target_names"),
    [
        (["1", "0", "01"], None, [1, 0, 1], ("0", "1")),
        (["1", "0", "1"], ["dog", "cat"], [1, 0, 1], ("dog", "cat")),
        (["cat", "dog", "cat"], ["dog", "cat"], [1, 0, 1], ("dog", "cat")),
        (["dog", "cat", "dog"], None, [1, 0, 1], ("cat", "dog")),
        (["0", "1", "0"], ["1", "0"], [1, 0, 1], ("1", "0")),
    ],
)
def test_targets_are_numbered_as_the_model_does(
    tmp_path, targets, label_names, expected, target_names
):
    rows = [(row[0], target, row[2]) for row, target in zip(GOOD, targets, strict=True)]
    labels = read(write(tmp_path, rows), label_names=label_names)
    assert labels.groups.target.tolist() == expected
    assert labels.groups.target_names == target_names
    assumed = [note for note in labels.notes if "alphabetical order" in note]
    assert len(assumed) == (label_names is None and "dog" in targets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no such file"),
        (b"", r"is empty"),
        (b" \n\n", r"is empty"),
        (b"path,target,bias\n", r"no rows"),
        (b"\xff\xfep\x00a", r"byte 0 is not UTF-8"),
        (b"p\x00a", r"zero bytes"),
        (b"path;target;bias\na;0;1\n", r"no column 'path', 'target', 'bias'; found .*commas"),
        (b"path,target,group\na,0,1\n", r"no column 'bias'; found 'path', 'target', 'group'"),
        (b"path,target,bias,bias\na,0,1,1\n", r"'bias' stands 2 times"),
        (b"path,target,bias\na,0\n\nb,0,1,1\n", r"row 2: 2 fields, expected 3.*\n.*row 4: 4 fie"),
        (b'path,target,bias\na,0,"1\n', r"row 2: unexpected end of data"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    csv = tmp_path / "val.csv"
    if text is not None:
        csv.write_bytes(text)
    with pytest.raises(LabelError, match=message) as caught:
        read(csv)
    assert caught.value.summary.startswith(str(csv))


@pytest.mark.parametrize(
    "options",
    [
        {"target_col": "bias"},
        {"bias_cols": ("bias", "bias")},
        {"audit_cols": ("bias",)},
        {"bias_cols": ("path",)},
    ],
)
def test_a_column_has_one_role(tmp_path, options):
    with pytest.raises(LabelError, match=r"'(bias|path)' is asked for [23] times"):
        read(write(tmp_path), **options)


def test_all_faults_are_listed_with_their_rows(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.png").touch()
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "root" / "loop.png").symlink_to("loop.png")
    (tmp_path / "root" / "dir.png").mkdir()
    rows = [
        ("a.png", "0", "red", "fit"),
        ("./a.png", "1", "red", "Train "),
        ("", " ", "", "fit"),
        ("../outside.png", "1", "red", "test"),
        ("link.png", "2", "red", "val"),
        ("loop.png", "x", "red", "none"),
        ("dir.png", "-1", "red", "report"),
        (str(tmp_path / "outside.png"), "1", "blue", "report"),
    ]
    csv = write(tmp_path / "root", rows, "path,target,bias,split", touch=False)
    (tmp_path / "root" / "a.png").touch()
    with pytest.raises(LabelError, match=r"13 faults in 8 rows") as caught:
        read(csv)
    found = re.findall(r"row (\d+): (.*)", str(caught.value))
    expected = [
        ("3", "image of row 2 again"),
        *[("4", f"column '{name}' is blank") for name in ("path", "target", "bias")],
        ("5", "leaves"),
        ("6", "leaves"),
        ("6", "target '2' in column 'target', expected 0..1"),
        ("7", "no image 'loop.png'"),
        ("7", "target 'x'"),
        ("7", "split 'none', expected one of 'fit'"),
        ("8", "not a file"),
        ("8", "target '-1'"),
        ("9", "leaves"),
    ]
    assert [row for row, _ in found] == [row for row, _ in expected]
    for (_, text), (_, part) in zip(found, expected, strict=True):
        assert part in text


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", "0", "x"), ("b", "0", "y")], {}, r"'target' has the one target '0'"),
        ([("a", "0", "x"), ("b", "1", "x")], {}, r"'bias' has the one value 'x'"),
        ([("a", "p", "x"), ("b", "q", "y")], {"num_classes": 3}, r"2 names \('p', 'q'\).*0\.\.2"),
        (
            [("a", "dog", "x"), ("b", "cow", "y")],
            {"label_names": ["dog", "cat"]},
            r"row 3: target 'cow' in column 'target', expected one of 'dog', 'cat'",
        ),
        (
            [("a", "dog", "x"), ("b", "crane", "y")],
            {"label_names": ["dog", "crane", "crane"], "num_classes": 3},
            r"row 3: target 'crane'.*classes that share a name",
        ),
        (
            [("a", "cow", "x"), ("b", "hen", "y")],
            {"label_names": ["dog", "cat"]},
            r"row 2: target 'cow' in column 'target', expected 0\.\.1 or one of 'dog', 'cat'",
        ),
        ([("a", "0", "x"), ("b", "1", "y")], {"num_classes": 600_000}, r"1200000 groups.*bin"),
    ],
)
def test_faults_of_the_whole_table(tmp_path, rows, options, message):
    with pytest.raises(LabelError, match=message):
        read(write(tmp_path, rows), **options)


def test_split_words(tmp_path):
    parts = ["Train", " val ", "TEST", "fit", "select", "report"]
    rows = [(f"{n}.png", str(n % 2), "rb"[n % 2], part) for n, part in enumerate(parts)]
    labels = read(write(tmp_path, rows, "path,target,bias,split"))
    assert labels.split == ("fit", "select", "report") * 2


def test_audited_columns_may_have_one_value_and_biases_may_be_absent(tmp_path):
    rows = [(*row, "same") for row in GOOD]
    csv = write(tmp_path, rows, "path,target,bias,age")
    groups = read(csv, audit_cols=("age",)).groups
    assert groups.columns == ("bias", "age")
    assert groups.audited == ("age",)
    assert groups.num_groups == 4
    assert read(csv, bias_cols=()).groups.index.tolist() == [0, 1, 1]


def test_small_groups_are_remarked(tmp_path):
    rows = [(f"{n}.png", "0", "x" if n else "y") for n in range(4)] + [("z.png", "1", "x")]
    notes = read(write(tmp_path, rows)).notes
    assert notes == (
        "1 group has no rows; their figures will be NaN: (1, y)",
        "2 groups have 1 or 2 rows; these go to the report part: (0, y), (1, x)",
    )


def test_images_elsewhere(tmp_path):
    csv = write(tmp_path, touch=False)
    root = tmp_path / "images"
    root.mkdir()
    for name, *_ in GOOD:
        (root / name).touch()
    with pytest.raises(LabelError, match=r"no image 'a.png' under"):
        read(csv)
    assert read(csv, images=root).paths[0] == root / "a.png"
    with pytest.raises(LabelError, match=r"no such folder"):
        read(csv, images=tmp_path / "none")


cell = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: text.strip() == text
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("01"), cell), min_size=2, max_size=8))
def test_any_text_survives_as_a_bias_name(tmp_path, values):
    import csv

    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "target", "bias"])
        writer.writerows([f"{n}.png", *value] for n, value in enumerate(values))
    for n in range(len(values)):
        (tmp_path / f"{n}.png").touch()
    if len({v for v, _ in values}) < 2 or len({v for _, v in values}) < 2:
        with pytest.raises(LabelError, match="the one"):
            read(path)
        return
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", text) for _, text in values):
        return
    groups = read(path).groups
    names = groups.value_names[0]
    assert [names[int(b)] for b in groups.biases[:, 0]] == [text for _, text in values]
    assert torch.equal(groups.target, torch.tensor([int(v) for v, _ in values]))


@pytest.mark.slow
def test_the_work_grows_with_the_rows_and_not_with_their_square(tmp_path):
    def seconds(num_rows):
        rows = [(f"{n % 100}/{n}.png", str(n % 2), "rgb"[n % 3]) for n in range(num_rows)]
        csv = write(tmp_path, rows)
        start = time.process_time()  # of this process, whatever else the machine does
        assert len(read(csv).paths) == num_rows
        return time.process_time() - start

    seconds(1000)
    assert seconds(100_000) < 40 * seconds(10_000)
