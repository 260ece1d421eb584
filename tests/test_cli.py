"""The command line from outside: flags, files, tables, exit codes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from surgeon_cli.main import app
from typer.testing import CliRunner

import surgeon
from surgeon.edit import Edit, Fold, UnitMask
from surgeon.measure import Ruler
from surgeon.methods.base import new_edit

ROOT = Path(__file__).parents[1]
MODEL = "model.safetensors"
DATA = f"{MODEL} --bias-labels val.csv --min-group 3"
CONTROLS = ("random", "random+erase", "magnitude", "magnitude+erase")
AVERAGES = {f"{name}_accuracy" for name in ("average", "balanced", "reweighted", "worst_group")}


def commands(group=None, path=()):
    """Yield the path of every command, groups included."""
    group = group or typer.main.get_command(app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def run(text):
    result = CliRunner().invoke(app, text.split())
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(text):
    result = run(text)
    assert result.exit_code == 0, result.stderr
    return result


def strict_json(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    """The tiny set, and in `out` what one full prune of it leaves; `shown` is its output."""
    folder = tmp_path_factory.mktemp("cli") / "home"
    shutil.copytree(tiny, folder)
    counts = "target,bias,count\ncat,blue,97\ncat,red,3\ndog,red,97\ndog,blue,3\n"
    (folder / "counts.csv").write_text(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # A gamma that is given keeps the mask, however short the search.
        flags = "--audit-col age --train-counts counts.csv --with-finetune --epochs 1 --gamma 0.5"
        result = done(f"prune {DATA} {flags} --out out")
    (folder / "shown.txt").write_text(result.stdout)
    (folder / "progress.txt").write_text(result.stderr)
    return folder


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """A copy of `home` to stand in and to change."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help(path):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_help_and_version_come_without_torch():
    code = (
        "import sys; from surgeon_cli.main import main\n"
        "for flag in ('--help', '--version'):\n"
        "    sys.argv = ['surgeon', flag]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'timm', 'numpy', 'surgeon'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "cli", check=True, capture_output=True)


def test_flags_are_the_fields_of_a_method_and_those_all_share():
    flags = {
        name: {parameter.name for parameter in command.params}
        for name, command in typer.main.get_command(app).commands.items()
    }
    search, training = (
        {field.name for field in fields(method)} - {"seed"}
        for method in (surgeon.FFW, surgeon.Finetune)
    )
    shared = flags["audit"] | {"out", "force"}
    assert not (search | training) & flags["audit"]
    shapes = {field.name for field in fields(surgeon.Formats)}
    operation = shared | {"with_finetune", "explain"}
    assert flags["prune"] == operation | search | {"sweep"} | shapes
    assert shapes <= flags["apply"]
    assert flags["mask"] == operation | {"method", "sparsity"}
    assert flags["head"] == operation | {"method", "recipe"}
    assert flags["finetune"] == operation | training | {"method"}
    assert flags["compare"] == shared | {"method", "jobs", "explain"}
    guess = {field.name for kind in surgeon.DISCOVERIES.values() for field in fields(kind)}
    files = {"labels", "method", "out", "force"}
    assert flags["discover"] == guess | files | (
        flags["audit"] - {"bias_labels", "audit_col", "aligned", "train_counts", "min_group"}
    )


def test_prune_leaves_these_files(home):
    names = f"{MODEL} config.json edit.safetensors surgeon.json README.md report.json"
    names += " layers.csv groups.csv report_logits.safetensors report"
    pages = {path.name for path in (home / "out" / "report").iterdir()}
    assert {"index.html", "examples", "groups.svg", "layers.svg", "features-bias.svg"} < pages
    assert {path.name for path in (home / "out").iterdir()} == set(names.split())
    record = strict_json((home / "out" / "surgeon.json").read_text())
    assert set(record) == {
        *("version", "command", "base", "edit_sha256", "model_sha256", "config", "seed"),
        "environment",
    }
    assert set(record["base"]) == {"sha256", "architecture", "num_classes"}
    assert record["config"]["epochs"] == 1
    config = strict_json((home / "out" / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog"]
    with (home / "out" / "layers.csv").open() as file:
        assert {row["name"] for row in csv.DictReader(file)} >= {"conv_stem", "classifier"}


def test_report_has_the_agreed_keys(home):
    report = strict_json((home / "out" / "report.json").read_text())
    assert set(report) == {
        *("version", "base", "data", "config", "operations", "verdict", "layers", "history"),
        *("seconds", "notes", "counts", "examples", "features"),
    }
    for example in report["examples"]:
        assert (home / "out" / "report" / example["file"]).is_file()
        assert (home / example["path"]).is_file()
    assert report["data"] == {"rows": 60, "fit": 36, "select": 12, "report": 12}
    assert {part: sum(g[part] for g in report["counts"]) for part in report["counts"][0]} == {
        **{"fit": 36, "select": 12, "report": 12},
    }
    names = [row["name"] for row in report["operations"]]
    assert names[0] == "vanilla"
    assert names[-1] == "ffw+erase"
    controls = {"random", "random+erase", "magnitude", "magnitude+erase"}
    assert set(names[1:-1]) == {"leace", "dfr", "finetune", "ffw", *controls}
    for row in report["operations"]:
        assert set(row) == {"name", "audit", "sparsity", "seconds"}
        assert set(row["sparsity"]) == {"gated", "all", "units"}
        audit = row["audit"]
        assert set(audit) == {*AVERAGES, "worst_group", "groups", "biases", "intervals", "n"}
        assert len(audit["groups"]) == 4
        for group in audit["groups"]:
            figures = {"n", "accuracy", "low", "high", "calibration_error"}
            assert set(group) == {"target", "bias", *figures}
            assert set(group["bias"]) == {"bias"}
            assert group["calibration_error"] is None
        assert set(audit["biases"]) == {"bias", "age"}
        for bias in audit["biases"].values():
            assert {"aligned", "conflicting", "gap", "chance", "leakage"} <= set(bias)
            assert set(bias["leakage"]) == {"bottleneck", "head_input", "logits"}
            assert set(bias["leakage"]["logits"]) == {"linear", "mlp"}
    first, last = (report["operations"][i]["audit"]["biases"]["age"] for i in (0, -1))
    assert first["leakage"]["head_input"] is None
    assert last["leakage"]["head_input"] is not None
    assert set(report["verdict"]) >= {"word", "against", "worst_group", "balanced", "aligned_by"}
    assert set(report["verdict"]["balanced"]) == {"difference", "low", "high"}
    assert set(report["layers"][0]) == {
        *("name", "kind", "weights", "kept", "sparsity", "units", "dead_units"),
    }
    assert len(report["history"]) == 1


def test_training_counts_weigh_the_groups(home):
    (vanilla, *_) = strict_json((home / "out" / "report.json").read_text())["operations"]
    audit = vanilla["audit"]
    cat_blue, cat_red, dog_blue, dog_red = (group["accuracy"] for group in audit["groups"])
    expected = (97 * cat_blue + 3 * cat_red + 3 * dog_blue + 97 * dog_red) / 200
    assert audit["reweighted_accuracy"] == pytest.approx(expected)
    assert expected != pytest.approx(audit["balanced_accuracy"])


def test_tables_stay_in_80_columns_and_names_stay_whole(home):
    shown = (home / "shown.txt").read_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert len(re.findall(r"^magnitude\+erase ", shown, re.MULTILINE)) == 3
    assert "leakage of 'age'" in shown
    assert "verdict: " in shown.splitlines()[-4]
    assert shown.splitlines()[-2:] == ["written: out", "to look at: out/report/index.html"]
    progress = (home / "progress.txt").read_text()
    assert "epoch 1/1, " in progress
    assert max(map(len, progress.splitlines())) <= 80


def test_names_of_the_user_are_text_and_not_markup(copy, spared):
    labels = (copy / "val.csv").read_text().replace("red", "[red]").replace("old", ":cat: " * 20)
    (copy / "val.csv").write_text(labels)
    shown = done(f"audit {DATA} --bias-col bias --bias-col age").stdout
    assert "[red]" in shown
    assert ":cat:" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_json_with_two_biases_is_one_object_on_stdout(copy, spared):
    flags = "--bias-col bias --bias-col age --epochs 1 --out two"
    result = done(f"prune {DATA} {flags} --json --min-group 1")
    document = strict_json(result.stdout)
    assert document == strict_json((copy / "two" / "report.json").read_text())
    assert len(document["operations"][0]["audit"]["groups"]) == 8
    assert "epoch 1/1" in result.stderr
    assert "writing two" in result.stderr


def test_sweep_with_force_replaces_and_says_what_it_chose(copy, spared, monkeypatch):
    scores, audit = iter([0.2, 0.9, 0.4]), Ruler.audit

    def scored(self, edit=None, *, rows=None, **kwargs):
        found = audit(self, edit, rows=rows, **kwargs)
        return replace(found, balanced_accuracy=next(scores)) if rows else found

    monkeypatch.setattr(Ruler, "audit", scored)
    before = (copy / "out" / "surgeon.json").read_bytes()
    flags = "--sweep gamma=1,3,5 --epochs 1 --out out --quiet"
    refused = run(f"prune {DATA} {flags}")
    assert refused.exit_code == 1
    assert (copy / "out" / "surgeon.json").read_bytes() == before
    assert done(f"prune {DATA} {flags} --force").stderr == ""
    tried = strict_json((copy / "out" / "sweep.json").read_text())
    assert [row["gamma"] for row in tried] == [1, 3, 5]
    for name in ("surgeon", "report"):
        assert strict_json((copy / "out" / f"{name}.json").read_text())["config"]["gamma"] == 3
    assert sorted(path.name for path in copy.iterdir()) == [
        *("config.json", "counts.csv", "images", MODEL, "out", "progress.txt", "shown.txt"),
        "val.csv",
    ]


@pytest.mark.parametrize(
    ("flags", "name", "others"),
    [
        ("mask", "gba-mask", {"leace", "dfr", "gba-mask+erase", *CONTROLS}),
        (
            "mask --method magnitude --sparsity 0.2",
            "magnitude",
            {"leace", "dfr", *CONTROLS} - {"magnitude"},
        ),
        ("head", "dfr", {"leace"}),
        ("head --method leace --with-finetune", "leace", {"dfr", "finetune"}),
        ("finetune --epochs 1", "finetune", {"dfr", "leace"}),
        ("finetune --method group-dro --epochs 1", "group-dro", {"dfr", "leace"}),
    ],
)
def test_other_operations_leave_what_prune_leaves(copy, spared, flags, name, others):
    command, _, rest = flags.partition(" ")
    result = done(f"{command} {DATA} --out new {rest}")
    assert "verdict: " in result.stdout
    assert {path.name for path in (copy / "new").iterdir()} == {
        path.name for path in (copy / "out").iterdir()
    }
    report = strict_json((copy / "new" / "report.json").read_text())
    names = [row["name"] for row in report["operations"]]
    assert (names[0], names[-1], set(names[1:-1])) == ("vanilla", name, others)
    assert strict_json((copy / "new" / "surgeon.json").read_text())["command"] == (
        f"surgeon {command}"
    )
    base, edited = load_file(copy / MODEL), load_file(copy / "new" / MODEL)
    changed = {key for key in base if not torch.equal(base[key], edited[key])}
    head = {"classifier.weight", "classifier.bias"}
    if command == "mask":
        assert bool(changed & head) == (name == "gba-mask")
        assert any(key.startswith("blocks") for key in changed) == (name == "magnitude")
    else:
        assert changed == head if command == "head" else changed > head
    done(f"apply {MODEL} new/edit.safetensors --out again")
    assert (copy / "again" / MODEL).read_bytes() == (copy / "new" / MODEL).read_bytes()


@pytest.mark.parametrize("flags", ["", "--no-recalibrate", "--no-erase-head --no-recalibrate"])
def test_apply_carries_out_what_it_is_told_to(copy, flags):
    done(f"apply {MODEL} out/edit.safetensors --out again {flags}")
    for name in (MODEL, "edit.safetensors"):
        same = (copy / "again" / name).read_bytes() == (copy / "out" / name).read_bytes()
        assert same == (not flags)
    base, edited = load_file(copy / MODEL), load_file(copy / "again" / MODEL)
    changed = {name for name in base if not torch.equal(base[name], edited[name])}
    assert any(name.endswith("running_mean") for name in changed) == ("recal" not in flags)
    assert "classifier.weight" in changed
    # So few rows show nothing above noise, so that the head tells no difference.
    kept = Edit.load(copy / "again" / "edit.safetensors")
    assert (kept.erasure is None) == ("erase" in flags)


def test_apply_slices(copy):
    subject = surgeon.load(copy / MODEL)
    off = torch.arange(24) < 9
    units = {"conv_stem": UnitMask(~off, (Fold("bn1.weight", 0), Fold("bn1.bias", 0)))}
    new_edit(subject, "ffw", units=units).save(copy / "units.safetensors")
    shown = done(f"apply {MODEL} units.safetensors --out small --slice --full").stdout
    assert re.search(
        r"^sliced: [\d,]+ of [\d,]+ parameters left \(9\d\.\d %\)$", shown, re.MULTILINE
    )
    assert load_file(copy / "small" / MODEL)["conv_stem.weight"].shape[0] == 15
    assert load_file(copy / "small" / "full" / MODEL)["conv_stem.weight"].shape[0] == 24
    shown = done(f"apply {MODEL} units.safetensors --out even --slice --round-to 8").stdout
    assert "  1 units are off and stay: keeps" in shown
    assert load_file(copy / "even" / MODEL)["conv_stem.weight"].shape[0] == 16
    shown = done(f"apply {MODEL} out/edit.safetensors --out same --slice").stdout
    assert "nothing could be cut out" in shown
    assert (copy / "same" / MODEL).read_bytes() == (copy / "out" / MODEL).read_bytes()
    assert run(f"apply {MODEL} units.safetensors --out wrong --full").exit_code == 2
    assert not (copy / "wrong").exists()


def test_report_shows_tables_and_costs(copy):
    shown = done("report out --batch 2").stdout
    for part in ("verdict: ", "parameters, millions", "images a second", "no speed-up"):
        assert part in shown
    found = strict_json(done("report out out --batch 1 --json").stdout)["results"]
    assert [result["folder"] for result in found] == ["out", "out"]
    assert found[0]["report"] == strict_json((copy / "out" / "report.json").read_text())
    cost = found[0]["cost"]
    assert cost["full"] == cost["edited"]
    assert cost["compressed_bytes"] < cost["file_bytes"] == (copy / "out" / MODEL).stat().st_size
    assert [row["batch"] for row in cost["speeds"]] == [1]
    page = (copy / "out" / "report" / "index.html").read_text()
    (copy / "out" / "report" / "index.html").unlink()
    done("report out --batch 1 --out both.html")
    assert (copy / "out" / "report" / "index.html").read_text() == page
    assert "results side by side" in (copy / "both.html").read_text()
    again = run("report out --out both.html")
    assert (again.exit_code, "both.html: exists already" in again.stderr) == (1, True)
    wrong = run("report images")
    assert wrong.exit_code == 1
    assert "images: no surgeon.json in it" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("..", "../../home-debiased"),
        ("local-dir:..", "../../home-debiased"),
        ("hf-hub:owner/cats.v1@refs/pr/1", "cats.v1-debiased"),
    ],
)
def test_without_out_a_result_lies_beside_its_network_or_here(copy, monkeypatch, name, place):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(copy))
    monkeypatch.chdir(copy / "images")
    done(f"apply {name} ../out/edit.safetensors")
    assert (Path(place) / MODEL).is_file()


def test_a_folder_given_as_local_dir_is_not_replaced_by_its_result(copy):
    shutil.copy("out/edit.safetensors", "edit.safetensors")
    wrong = run("apply local-dir:out edit.safetensors --out out --force")
    assert wrong.exit_code == 1
    assert "out: holds an input of this run" in wrong.stderr


def test_audit_prints_one_object(copy, spared):
    result = done(f"audit {DATA} --json --aligned bias=red:dog")
    audit = strict_json(result.stdout)
    assert audit["n"] == 12
    assert set(audit["biases"]) == {"bias"}
    assert "note: " in result.stderr


def test_inspect_with_and_without_labels(copy):
    document = strict_json(done(f"inspect {MODEL} --json").stdout)
    assert document["num_classes"] == 2
    assert "groups" not in document
    shown = done(f"inspect {MODEL} --bias-labels val.csv --audit-col age").stdout
    assert "conv_stem" in shown
    assert re.search(r"^cat, bias blue +15", shown, re.MULTILINE)
    assert "label_names: 'cat', 'dog'" in shown


def test_interruption_writes_nothing(copy, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(surgeon, "operate", interrupt)
    before = sorted(copy.rglob("*"))
    result = run(f"prune {DATA} --out new")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("interrupted: ")
    assert sorted(copy.rglob("*")) == before


def test_empty_and_tiny_groups_are_remarked_and_run(copy):
    head, *rows = (copy / "val.csv").read_text().splitlines()
    swaps = {0: ("blue", "green"), 4: ("blue", "green"), 3: ("red", "grey")}
    rows = [row.replace(*swaps.get(i, ("", ""))) for i, row in enumerate(rows)]
    (copy / "val.csv").write_text("\n".join([head, *rows]))
    shown = " ".join(done(f"prune {DATA} --epochs 1 --min-group 1 --out new").stdout.split())
    assert "2 groups have no rows; their figures will be NaN: (cat, grey), (dog, green)" in shown
    assert "1 or 2 rows; these go to the report part: (cat, green), (dog, grey)" in shown
    assert "2 groups have no report rows" in shown
    report = strict_json((copy / "new" / "report.json").read_text())
    groups = report["operations"][-1]["audit"]["groups"]
    counts = {(g["target"], g["bias"]["bias"]): (g["n"], g["accuracy"]) for g in groups}
    assert counts["dog", "green"] == (0, None)
    assert counts["cat", "green"][0] == 2
    assert counts["dog", "grey"][0] == 1
