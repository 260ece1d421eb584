"""Every public name has a docstring."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def undocumented(tree, prefix=""):
    """Yield public modules, classes and functions without a docstring."""
    if not prefix and ast.get_docstring(tree) is None:
        yield "module"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name} (line {node.lineno})"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("package", ["surgeon", "cli/surgeon_cli"])
def test_public_names_have_docstrings(package):
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in undocumented(ast.parse(path.read_text("utf-8")))
    ]
    assert missing == []


def test_a_missing_docstring_is_found():
    code = "class A:\n    '''A.'''\n    def b(self): ...\n    def _c(self): ...\ndef d(): ...\n"
    assert list(undocumented(ast.parse(code))) == ["module", "A.b (line 3)", "d (line 5)"]
