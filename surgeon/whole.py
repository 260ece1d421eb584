"""Files and folders that are put in place whole or not at all, so that nothing is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import ArtefactError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of a file to write, and rename it onto the file at the end.

    Args:
        path: The file; its folder is made if need be.

    Yields:
        The sibling; on failure it is removed and an earlier file stays as it was.

    Raises:
        ArtefactError: The file system refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be written ({error.strerror or error}); pass another --out"
        ) from error
    finally:
        if temporary.is_file():
            temporary.unlink()


def check_out(
    out: Path, *, force: bool, inputs: tuple[Path, ...] = (), marker: str = "surgeon.json"
) -> None:
    """Refuse, before any work, an output folder that could not or must not be written.

    Args:
        out: The folder to be made.
        force: Replace an earlier result.
        inputs: Files that a replaced folder must not contain.
        marker: File that shows a folder to be an earlier result.

    Raises:
        ArtefactError: It exists, is not ours to replace, holds an input, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        if not force:
            raise ArtefactError(
                f"{out}: exists already; pass --force to replace it, or another --out"
            )
        earlier = out.is_dir() and not out.is_symlink()
        if not earlier or (any(out.iterdir()) and not (out / marker).is_file()):
            raise ArtefactError(
                f"{out}: is not an earlier result (no {marker} in it), so --force does not "
                "replace it; pass another --out"
            )
        places = {p: p.resolve() for p in inputs}
        inside = [str(p) for p, at in places.items() if out.resolve() in (at, *at.parents)]
        if inside:
            raise ArtefactError(f"{out}: holds an input of this run; pass another --out", inside)
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtefactError(f"{out}: {parent} is not a folder you can write to; pass another --out")


@contextmanager
def fresh_directory(out: Path, *, force: bool, marker: str = "surgeon.json") -> Iterator[Path]:
    """Give a temporary sibling of `out` to fill, and put it in place of `out` at the end.

    On any failure the sibling is removed and an earlier `out` stays as it was.

    Raises:
        ArtefactError: As `check_out`, or the file system refused.
    """
    check_out(out, force=force, marker=marker)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    except OSError as error:
        raise ArtefactError(
            f"{out}: cannot be written: {error.strerror}; pass another --out"
        ) from error
    try:
        yield new
        new.chmod(0o755)
        _swap(new, out)
    except OSError as error:
        raise ArtefactError(f"{out}: could not be written: {error}; nothing was changed") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Rename the earlier folder away and the new one in; undo on failure."""
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.absolute().parent))
    kept = old / out.name
    try:
        out.rename(kept)
        new.rename(out)
    except BaseException:  # Ctrl-C too
        if kept.exists() and not out.exists():
            kept.rename(out)
        old.rmdir()  # refuses to delete the earlier result if it could not be put back
        raise
    shutil.rmtree(old, ignore_errors=True)
