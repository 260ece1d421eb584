"""Files and folders are put in place whole, or everything stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

import surgeon.whole
from surgeon.errors import ArtefactError
from surgeon.whole import check_out, fresh_directory, replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
    with (
        pytest.raises(ArtefactError, match="cannot be written"),
        replacing(path / "x") as temporary,
    ):
        temporary.write_text("x")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with fresh_directory(out, force=False) as folder:
        (folder / "surgeon.json").write_text("1")
        assert not out.exists()
    assert names(out) == ["surgeon.json"]
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_inside_leaves_everything_as_it_was(tmp_path, error, earlier):
    out = tmp_path / "out"
    if earlier:
        out.mkdir()
        (out / "surgeon.json").write_text("old")

    def fail():
        with fresh_directory(out, force=earlier) as folder:
            (folder / "surgeon.json").write_text("new")
            raise error

    kind = ArtefactError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind):
        fail()
    assert names(tmp_path) == (["out"] if earlier else [])
    assert not earlier or (out / "surgeon.json").read_text() == "old"


def test_force_replaces_an_earlier_result(tmp_path):
    out = tmp_path / "out"
    for content in ("old", "new"):
        with fresh_directory(out, force=content == "new") as folder:
            (folder / "surgeon.json").write_text(content)
            (folder / content).touch()
    assert names(out) == ["new", "surgeon.json"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError("refused"), KeyboardInterrupt()])
@pytest.mark.parametrize("back", [True, False])
def test_an_earlier_result_outlives_a_failed_rename(tmp_path, monkeypatch, error, back):
    out = tmp_path / "out"
    out.mkdir()
    (out / "surgeon.json").write_text("old")
    rename, calls = Path.rename, []

    def refuse(self, target):
        calls.append(target)
        if len(calls) == 2 or (len(calls) == 3 and not back):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)

    def replace():
        with fresh_directory(out, force=True) as folder:
            (folder / "surgeon.json").write_text("new")

    with pytest.raises((ArtefactError, KeyboardInterrupt)):
        replace()
    kept = [path for path in tmp_path.rglob("surgeon.json")]
    assert [path.read_text() for path in kept] == ["old"]
    if back:
        assert names(tmp_path) == ["out"]


def test_what_check_out_refuses(tmp_path):
    out = tmp_path / "out"
    check_out(out, force=False)
    out.mkdir()
    with pytest.raises(ArtefactError, match="exists already; pass --force"):
        check_out(out, force=False)
    check_out(out, force=True)  # empty
    (out / "thesis.tex").touch()
    with pytest.raises(ArtefactError, match=r"not an earlier result \(no surgeon\.json"):
        check_out(out, force=True)
    (out / "surgeon.json").touch()
    check_out(out, force=True)
    with pytest.raises(ArtefactError, match=r"holds an input(.|\n)*val\.csv"):
        check_out(out, force=True, inputs=(tmp_path / "a.csv", out / "sub" / "val.csv"))
    with pytest.raises(ArtefactError, match=r"no \.demo in it"):
        check_out(out, force=True, marker=".demo")
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ArtefactError, match="not an earlier result"):
        check_out(tmp_path / "link", force=True)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ArtefactError, match="not an earlier result"):
        check_out(file, force=True)
    with pytest.raises(ArtefactError, match="not a folder you can write to"):
        check_out(file / "out", force=False)


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(surgeon.whole.os, "access", lambda *_: False)
    with pytest.raises(ArtefactError, match="not a folder you can write to"):
        check_out(tmp_path / "out", force=False)
