"""What the built wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_holds_both_packages_and_nothing_else(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        tmp_path,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (info,) = (name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    assert info.startswith("debias_surgeon-")
    assert {name.split("/")[0] for name in names} == {"surgeon", "surgeon_cli", info}
    assert {"surgeon/py.typed", "surgeon_cli/py.typed", f"{info}/licenses/LICENSE"} <= names
    modules = {
        path.relative_to(folder).as_posix()
        for folder in (ROOT, ROOT / "cli")
        for path in folder.glob("surgeon*/**/*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
