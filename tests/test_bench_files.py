"""Result files: names, whole or not at all, the commit of the code."""

from __future__ import annotations

import subprocess
from dataclasses import replace

from surgeon.benchmarks import files
from surgeon.benchmarks.files import code_commit, setting_name
from surgeon.benchmarks.protocol import Setting


def test_names_of_settings():
    setting = Setting(benchmark="biased-mnist", rho=0.99, seed=0)
    assert setting_name(setting) == "biased-mnist-0.99-seed-0"
    full = replace(setting, scale="paper", rows=300, label_rho=0.9, net="test_resnet")
    assert setting_name(full) == "biased-mnist-0.99-seed-0-paper-n300-labels0.9-test_resnet"
    several = [
        *(setting, full, replace(setting, rho=None), replace(setting, rho=0.9900000001)),
        *(replace(setting, scale="paper"), replace(setting, rows=1), replace(setting, seed=1)),
        *(replace(setting, net=f"hf-hub:a{slash}b") for slash in ("/", "%2F")),
        *(replace(setting, discovery="voronoi"), replace(full, discovery="voronoi")),
        *(replace(setting, net="a-b", seed=1), replace(setting, net="a%2Db", seed=1)),
    ]
    names = [setting_name(s, epochs) for s in several for epochs in (None, 1, 11)]
    assert len(set(names)) == len(names)
    assert all("/" not in name for name in names)


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    package = tmp_path / "surgeon"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(files, "__file__", str(package / "benchmarks" / "files.py"))
    assert code_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = code_commit()
    assert len(commit) == 40
    (tmp_path / "results.json").touch()
    assert code_commit() == commit
    (package / "new.py").touch()
    assert code_commit() == f"{commit}-dirty"
    inner = tmp_path / "venv" / "surgeon"
    inner.mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(inner / "benchmarks" / "files.py"))
    assert code_commit() is None
    monkeypatch.setenv("PATH", "")
    assert code_commit() is None
