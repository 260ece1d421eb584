"""The runner of benchmarks: results, and what is used again."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

import surgeon
from surgeon.benchmarks import run as runner
from surgeon.benchmarks.owner import PARTS
from surgeon.benchmarks.run import OPERATIONS, make_operations, run
from surgeon.benchmarks.sets import SETS
from surgeon.errors import ArtefactError, LabelError, OptionError, SurgeonError
from surgeon.measure import Measures
from surgeon.methods import FFW, METHODS, Finetune
from surgeon.methods.base import new_edit
from tests.tiny_bench import SETTING, part_of, tiny_set

# Toy searches are too short to beat a new head alone.
pytestmark = pytest.mark.usefixtures("always_masked")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, spared):
    """Register the tiny set."""
    monkeypatch.setitem(SETS, "tiny", tiny_set)


@pytest.fixture
def fits(monkeypatch):
    """Record what is fitted or trained, by name, while everything runs as it does."""
    seen = []

    def spy(owner, name, label):
        inner = getattr(owner, name)

        def wrapped(*args, **kwargs):
            seen.append(label(*args))
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    spy(FFW, "fit", lambda self, *_: f"{self.recipe} {self.mode} {self.gamma}")
    spy(Finetune, "fit", lambda self, *_: f"finetune {self.settings().epochs}")
    spy(surgeon.benchmarks.vanilla, "train", lambda bench: f"train {bench.training.epochs}")
    return seen


def operations(**changes):
    methods = {"ffw": FFW(epochs=1, seed=1), "ffw-structured": FFW(mode="structured", epochs=1)}
    return {name: replace(method, **changes.get(name, {})) for name, method in methods.items()}


def test_a_run_leaves_what_it_says(tmp_path, fits):
    lines, epochs = [], []
    results = run(SETTING, tmp_path, operations(), announce=lines.append, progress=epochs.append)
    assert fits == [
        "train 2",
        "default unstructured None",
        "finetune 40",
        "default structured None",
    ]
    assert {record["epochs"] for record in epochs} == {1, 2}
    assert lines[0] == "tiny-seed-1: making the data"
    paths = [tmp_path / "results" / f"tiny-seed-1-{name}.json" for name in operations()]
    assert set((tmp_path / "results").iterdir()) == set(paths)
    assert [json.loads(path.read_text()) for path in paths] == results
    main, structured = results
    assert set(main) == {
        *("version", "setting", "operation", "config", "source", "dropped", "rows", "training"),
        *("vanilla_sha256", "data_sha256", "environment", "git", "seconds", "groups"),
        *("operations", "verdict", "against_dfr", "sliced"),
    }
    assert set(structured) == set(main)
    sliced = structured["sliced"]
    assert sliced["same"] == sliced["rows"] == structured["rows"]["report"]
    assert sliced["parameters_left"] < sliced["parameters"]
    assert main["setting"] == {
        **{"benchmark": "tiny", "seed": 1, "rho": None, "scale": "small", "net": None},
        **{"rows": None, "label_rho": None, "discovery": None, "epochs": None},
    }
    assert main["config"]["method"] == "ffw"
    assert main["config"]["settings"]["epochs"] == 1
    assert main["training"]["net"] == "surgeon_small_conv_net"
    assert set(main["seconds"]) == {"data", "vanilla", "fit", "whole"}
    assert set(main["environment"]) >= {"torch", "device", "device_name", "threads"}
    assert main["rows"] == {"train": 160, "fit": 80, "select": 40, "report": 80}
    owner = tmp_path / "tiny-seed-1"
    assert {p.name for p in owner.iterdir()} == {
        *("model.safetensors", "config.json", "val.csv", "images", "bench.json"),
    }
    assert main["vanilla_sha256"] == surgeon.load(owner).sha256
    with (owner / "val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "target", "ground", "split"]
    assert len(rows) == 200
    names = [row["name"] for row in main["operations"]]
    assert names[:4] == ["vanilla", "leace", "dfr", "finetune"]
    assert names[4:] == [
        *("random", "random+erase", "magnitude", "magnitude+erase", "ffw", "ffw+erase"),
    ]
    assert [row["name"] for row in structured["operations"]] == [
        *("vanilla", "ffw-structured", "ffw-structured+erase"),
    ]
    assert structured["operations"][0] == main["operations"][0]
    assert structured["verdict"]["against"] == "vanilla"
    assert structured["against_dfr"] is None
    for row in (*main["operations"], *structured["operations"]):
        mlp = None if row["name"].startswith("random") else 0.5
        assert row["audit"]["biases"]["ground"]["leakage"]["logits"] == {"linear": 0.5, "mlp": mlp}
        accuracies = row["audit"]["group_accuracies"]
        weighted = sum(g["n"] * a for g, a in zip(main["groups"], accuracies, strict=True)) / 80
        assert weighted == pytest.approx(row["audit"]["average_accuracy"], abs=1e-5)
    scores = {r["name"]: r["audit"]["worst_group_accuracy"] for r in main["operations"]}
    against = main["against_dfr"]
    assert against["against"] == "dfr"
    difference = scores["ffw+erase"] - scores["dfr"]
    assert against["worst_group"]["difference"] == pytest.approx(difference, abs=1e-5)
    assert main["verdict"]["against"] == "vanilla"


def test_what_is_done_is_used_again_and_what_changed_is_not(tmp_path, fits):
    first = run(SETTING, tmp_path, operations(), epochs=1)
    fits.clear()
    lines = []
    assert run(SETTING, tmp_path, operations(), epochs=1, announce=lines.append) == first
    assert fits == []
    commit = first[0]["git"] or "unknown"
    assert lines[1].endswith(f"tiny-seed-1-epochs1-ffw.json is used again, of commit {commit}")
    again = run(SETTING, tmp_path, operations(**{"ffw-structured": {"gamma": 0.25}}), epochs=1)
    assert fits == ["default structured 0.25"]
    assert again[0] == first[0]
    assert again[1]["config"]["gamma"] == 0.25
    # Other labelled rows, the same network: measured anew, not trained anew.
    fits.clear()
    (other,) = run(
        replace(SETTING, rows=60),
        tmp_path,
        {"ffw-structured": operations()["ffw-structured"]},
        epochs=1,
    )
    assert fits == ["default structured None"]
    assert other["vanilla_sha256"] == first[0]["vanilla_sha256"]
    assert other["rows"]["fit"] == 60


def test_a_brief_run_measures_less_and_is_not_taken_for_a_whole_one(tmp_path, fits):
    method = {"ffw": operations()["ffw"]}
    (brief,) = run(SETTING, tmp_path, method, brief=True)
    names = ["vanilla", "dfr", "ffw", "ffw+erase"]
    assert [row["name"] for row in brief["operations"]] == names
    assert brief["brief"] is True
    assert brief["against_dfr"]["against"] == "dfr"
    assert fits == ["train 2", "default unstructured None"]
    fits.clear()
    (whole,) = run(SETTING, tmp_path, method)
    assert fits == ["default unstructured None", "finetune 40"]
    assert "brief" not in whole
    same = [row for row in whole["operations"] if row["name"] in names]
    for row in (*same, *brief["operations"]):
        row.pop("seconds")
    assert same == brief["operations"]
    fits.clear()
    run(SETTING, tmp_path, method, brief=True)
    assert fits == []


def test_a_run_without_mlp_probes_is_not_taken_for_one_with_them(tmp_path, fits):
    def read(*, mlp):
        (result,) = run(SETTING, tmp_path, {"dfr": METHODS["dfr"]()}, mlp=mlp)
        (bias,) = result["operations"][-1]["audit"]["biases"].values()
        return bias["leakage"]["logits"]

    assert read(mlp=False) == {"linear": 0.5, "mlp": None}
    assert read(mlp=True) == {"linear": 0.5, "mlp": 0.5}
    assert read(mlp=False) == {"linear": 0.5, "mlp": 0.5}


@pytest.mark.parametrize("part", ["train", "report"])
def test_a_result_of_other_rows_is_not_used_again(tmp_path, fits, monkeypatch, part):
    method = {"ffw-structured": operations()["ffw-structured"]}
    (first,) = run(SETTING, tmp_path, method)
    fits.clear()
    changed = replace(tiny_set(SETTING), **{part: part_of(88, 0.6, 77)})
    monkeypatch.setitem(SETS, "tiny", lambda _: changed)
    (second,) = run(SETTING, tmp_path, method)
    assert fits == (["train 2"] if part == "train" else []) + ["default structured None"]
    assert second["data_sha256"] != first["data_sha256"]
    assert (second["vanilla_sha256"] == first["vanilla_sha256"]) == (part == "report")


@pytest.mark.parametrize("error", [KeyboardInterrupt, LabelError("boom")])
def test_an_interruption_keeps_what_is_finished(tmp_path, fits, monkeypatch, error):
    methods, name = operations(), "tiny-seed-1-epochs1-ffw-structured.json"
    fit = FFW.fit

    def interrupt(self, *args, **kwargs):
        if self.mode == "unstructured":
            raise error
        return fit(self, *args, **kwargs)

    reverse = dict(reversed(methods.items()))
    with monkeypatch.context() as patch:
        patch.setattr(FFW, "fit", interrupt)
        with pytest.raises((KeyboardInterrupt, LabelError)):
            run(SETTING, tmp_path, reverse, epochs=1)
    assert [p.name for p in (tmp_path / "results").iterdir()] == [name]
    fits.clear()
    assert len(run(SETTING, tmp_path, reverse, epochs=1)) == 2
    assert fits == ["default unstructured None", "finetune 1"]


def test_a_cap_on_epochs_holds_everywhere_and_is_told(tmp_path, fits):
    methods = {**make_operations(["ffw", "ffw-paper"], 1), "finetune-long": Finetune(epochs=90)}
    results = run(SETTING, tmp_path, methods, epochs=1)
    assert fits == [
        *(
            "train 1",
            "default unstructured None",
            "finetune 1",
            "paper unstructured None",
            "finetune 1",
        ),
    ]
    assert {result["setting"]["epochs"] for result in results} == {1}
    assert {result["training"]["epochs"] for result in results} == {1}
    assert results[0]["config"]["settings"]["epochs"] == 1
    assert results[2]["config"]["epochs"] == 1
    assert (tmp_path / "results" / "tiny-seed-1-epochs1-ffw.json").is_file()


def test_a_setting_of_the_papers_scale_has_its_own_names(tmp_path):
    methods = {"ffw-structured": operations()["ffw-structured"]}
    (result,) = run(replace(SETTING, scale="paper", rho=0.99), tmp_path, methods, epochs=1)
    assert result["setting"]["scale"] == "paper"
    assert (tmp_path / "tiny-0.99-seed-1-paper-epochs1" / "val.csv").is_file()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rho": float("nan")}, "--rho: found nan"),
        ({"label_rho": 1.5}, "--label-rho: found 1.5, expected 0 to 1"),
        ({"seed": -1}, "--seed: found -1, expected 0 or more"),
        ({"rows": 0}, "--rows: found 0, expected 1 or more"),
        ({"scale": "huge"}, "--scale: found 'huge', expected small or paper"),
        ({"benchmark": "nix"}, "found 'nix', expected one of biased-mnist"),
    ],
)
def test_settings_that_cannot_be(tmp_path, change, match):
    with pytest.raises(OptionError, match=match):
        run(replace(SETTING, **change), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_an_unknown_network_is_refused(tmp_path):
    with pytest.raises(OptionError, match="--net: 'nix' is not a model of timm"):
        run(replace(SETTING, net="nix"), tmp_path / "out", {})
    assert not (tmp_path / "out" / "vanilla").exists()


def test_what_cannot_be_written_or_read_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match="is not a folder you can write to"):
        run(SETTING, tmp_path / "file" / "out", {})
    with pytest.raises(OptionError, match="--epochs: found 0"):
        run(SETTING, tmp_path / "out", {}, epochs=0)
    with pytest.raises(OptionError, match="found 'nix', expected one of ffw, ffw-structured"):
        make_operations(["ffw", "nix"], 0)
    (tmp_path / "tiny-seed-1").mkdir()
    (tmp_path / "tiny-seed-1" / "mine.txt").touch()
    with pytest.raises(ArtefactError, match="is not an earlier result"):
        run(SETTING, tmp_path, {})
    (tmp_path / "tiny-seed-1" / "mine.txt").unlink()
    run(SETTING, tmp_path, {})
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny-seed-1-ffw.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"cannot be read .* delete it and run"):
        run(SETTING, tmp_path, operations())
    (tmp_path / "tiny-seed-1" / "model.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"cannot be read .* and run again"):
        run(SETTING, tmp_path, {})


def test_capped_finetuning_and_probes_of_every_row_are_asked_for():
    measures = runner._measures(SETTING, 3, brief=False, mlp=True)
    assert measures == Measures(
        with_finetune=True, finetune_epochs=3, mlp_every_row=True, seed=SETTING.seed
    )


def test_every_method_can_be_measured():
    made = make_operations(list(OPERATIONS), 5)
    assert {method.name for method in made.values()} == set(METHODS)
    assert {getattr(method, "seed", 5) for method in made.values()} == {5}
    assert set(METHODS) <= set(made)


def test_errors_of_the_runner_are_of_the_users_kind():
    assert issubclass(ArtefactError, SurgeonError)


def test_an_audited_bias_is_measured_and_not_fitted(tmp_path, monkeypatch):
    def with_side(part):
        return replace(part, biases=torch.cat([part.biases, 1 - part.biases], dim=1))

    def two(setting):
        bench = tiny_set(setting)
        parts = {name: with_side(getattr(bench, name)) for name in ("train", *PARTS)}
        names = {**bench.bias_names, "side": ("left", "right")}
        return replace(bench, bias_names=names, audited=("side",), **parts)

    monkeypatch.setitem(SETS, "tiny", two)
    fitted = []

    def fit(self, subject, data, *, progress=None):
        fitted.append((data.fit.groups.columns, data.fit.groups.fitted))
        return new_edit(subject, "ffw")

    monkeypatch.setattr(FFW, "fit", fit)
    (result,) = run(SETTING, tmp_path, {"ffw-refit": FFW()}, epochs=1)
    assert fitted == [(("ground", "side"), (0,))]
    row = result["operations"][-1]
    assert set(row["audit"]["biases"]) == set(row["by_alignment"]["gap"]) == {"ground", "side"}
    assert len(row["by_alignment"]["groups"]) == 4
