"""A module imports from strictly lower ranks only; the command line sees public names only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANKS = {
    "errors": 0,
    "head": 1,
    "hugging_face": 0.5,
    "metrics": 0,
    "identification": 1.1,
    "architecture": 1.2,
    "checkpoint": 1,
    "crew": 1,
    "cross_sample": 1,
    "load_sliced": 1,
    "groups": 1,
    "mutual_information": 1,
    "dependence": 1,
    "options": 1,
    "paired": 1,
    "preprocessing": 1,
    "table": 1,
    "whole": 1,
    "edit": 2,
    "findings": 2,
    "images": 2,
    "labels": 2,
    "splits": 2,
    "stacked_mlp": 2,
    "subject": 2,
    "loading": 2.05,
    "train_counts": 2,
    "bias_head": 3,
    "cost": 3,
    "data": 3,
    "erasure": 3,
    "slicing.marks": 2,
    "slicing.weights": 2.1,
    "slicing.calls": 2.1,
    "slicing.normalisations": 2.15,
    "slicing.rules": 2.2,
    "slicing.trace": 2.3,
    "slicing.plan": 2.4,
    "slicing.working": 2.5,
    "slicing.separable": 2.6,
    "sites": 2.8,
    "gates": 3,
    "gradcam": 3,
    "probes": 3,
    "recalibrate": 3,
    "audit": 4,
    "discovery.base": 4,
    "discovery.clusters": 4,
    "discovery.moments": 4,
    "discovery.": 4.1,
    "discovery": 4.2,
    "inspection": 4,
    "verdict": 4,
    "remarks": 4.5,
    # A method sees the base class and no sibling; the registry sees them all.
    "methods.base": 5,
    "methods.augmentation": 5.02,
    "methods.averaging": 5.02,
    "methods.bias_term": 5.02,
    "methods.closing": 5.02,
    "methods.regime": 5.02,
    "methods.refit": 5.05,
    "methods.search": 5.05,
    "methods.training": 5.05,
    "methods.": 5.1,
    "methods": 5.2,
    "slicing.cut": 6,
    "views": 6,
    "slicing": 6.1,
    "surgery": 6,
    "record": 7,
    "card": 7.1,
    "formats": 7.1,
    "export": 7.2,
    "measure": 7.5,
    "operate": 8,
    "comparison_folder": 8.2,
    "entry": 8.2,
    "demo": 8.5,
    "benchmarks": 9,
    "compare": 9,
    "report": 9,
    "": 10,
}
# Packages of their own, not re-exported by surgeon, so that importing it does not draw them in.
OPEN_PACKAGES = ("report", "benchmarks")


def rank(name):
    """Rank of a module by its dotted name below surgeon; None if it has none."""
    top = name.split(".")[0]
    key = name if name in RANKS else f"{top}." if "." in name and f"{top}." in RANKS else top
    return RANKS.get(key)


def imports(path, root):
    """Yield the node, its module, the names taken from it, and whether it is for types only."""
    tree = ast.parse(path.read_text("utf-8"))
    package = list(path.relative_to(root).with_suffix("").parts[:-1])
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, [], node in for_types
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node, module, [alias.name for alias in node.names], node in for_types


def is_module(root, dotted):
    path = root.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def library_faults(root):
    faults = []
    for path in sorted((root / "surgeon").rglob("*.py")):
        parts = path.relative_to(root / "surgeon").with_suffix("").parts
        own = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        where = path.relative_to(root)
        if rank(own) is None:
            faults.append(f"{where}:1 has no rank; add it to RANKS")
            continue
        for node, module, names, for_types in imports(path, root):
            if module.split(".")[0] == "surgeon_cli":
                faults.append(f"{where}:{node.lineno} imports the command line")
            if module.split(".")[0] != "surgeon":
                continue
            inside = [f"{module}.{name}" for name in names]
            targets = [name if is_module(root, name) else module for name in inside] or [module]
            for target in dict.fromkeys(name.partition(".")[2] for name in targets):
                same_package = own.split(".")[0] == target.split(".")[0] in OPEN_PACKAGES
                other = rank(target)
                if other is None:
                    faults.append(f"{where}:{node.lineno} imports {target}, which has no rank")
                # An annotation may name a type of the same rank.
                elif not (same_package or other < rank(own) or (for_types and other == rank(own))):
                    faults.append(
                        f"{where}:{node.lineno} imports {target or 'surgeon'} (rank {other}), "
                        f"own rank {rank(own)}"
                    )
    return faults


def command_line_faults(root):
    """The command line imports the package itself, inside functions, so that --help is instant."""
    faults = []
    heavy = {"surgeon", "torch", "timm", "torchvision", "numpy", "pandas", "sklearn", "matplotlib"}
    for path in sorted((root / "cli").rglob("*.py")):
        where = path.relative_to(root)
        tree = ast.parse(path.read_text("utf-8"))
        late = {
            (inner.lineno, inner.col_offset)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            for inner in ast.walk(node)
            if isinstance(inner, ast.Import | ast.ImportFrom)
        }
        for node, module, names, for_types in imports(path, root / "cli"):
            if module.split(".")[0] not in heavy:
                continue
            if (node.lineno, node.col_offset) not in late and not for_types:
                faults.append(f"{where}:{node.lineno} imports {module} before a command runs")
            inside = [module, *(f"{module}.{name}" for name in names)]
            if any(
                name.startswith("surgeon.")
                and is_module(root, name)
                and name.split(".")[1] not in OPEN_PACKAGES
                for name in inside
            ):
                faults.append(f"{where}:{node.lineno} imports {module}, expected public names only")
    return faults


def test_modules_import_from_lower_ranks():
    assert library_faults(ROOT) == []


def test_the_command_line_imports_public_names_late():
    assert command_line_faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "fault"),
    [
        ("groups.py", "from surgeon.splits import x", "imports splits (rank 2), own rank 1"),
        ("groups.py", "def f():\n    import surgeon.table", "imports table (rank 1), own rank 1"),
        ("audit.py", "from . import verdict", "imports verdict (rank 4), own rank 4"),
        ("data.py", "from .groups import x\nfrom . import x", "imports surgeon (rank 10)"),
        ("methods/ffw.py", "from .dfr import x", "imports methods.dfr (rank 5.1)"),
        ("methods/base.py", "from .. import operate", "imports operate (rank 8), own rank 5"),
        ("methods/ffw.py", "from surgeon.methods.base import x\nimport surgeon_cli", "command"),
        ("data.py", "if TYPE_CHECKING:\n    from .audit import x", "imports audit (rank 4)"),
        ("utils.py", "", "has no rank"),
        ("groups.py", "from surgeon.utils import x", "imports utils, which has no rank"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, code, fault):
    package = tmp_path / "surgeon"
    (package / "methods").mkdir(parents=True)
    for name in ("__init__", "verdict", "methods/__init__", "methods/dfr", "operate", "groups"):
        (package / f"{name}.py").write_text("")
    (package / file).write_text(code)
    (found,) = library_faults(tmp_path)
    assert found.startswith(f"surgeon/{file}:{max(1, code.count(chr(10)) + 1)} ")
    assert fault in found


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import surgeon", "before a command runs"),
        ("def f():\n    from surgeon.data import x", "public names only"),
        ("def f():\n    from surgeon import data", "public names only"),
        ("import torch", "before a command runs"),
    ],
)
def test_a_planted_violation_of_the_command_line_is_found(tmp_path, code, fault):
    for folder in ("surgeon", "cli/surgeon_cli"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "surgeon" / "data.py").write_text("")
    (tmp_path / "cli" / "surgeon_cli" / "main.py").write_text(code)
    (found,) = command_line_faults(tmp_path)
    assert fault in found
