"""The benchmark's runner: training, what an owner gets, results, and what is used again."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from surgeon_cli.main import app
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import surgeon
from surgeon.benchmarks import files
from surgeon.benchmarks import run as runner
from surgeon.benchmarks.alignment import by_alignment, own_values
from surgeon.benchmarks.files import code_commit, replacing, setting_name
from surgeon.benchmarks.nets import SmallConvNet
from surgeon.benchmarks.owner import PARTS, without_repeats, write_owner
from surgeon.benchmarks.protocol import BenchSet, Part, Setting, Training
from surgeon.benchmarks.run import make_operations, run
from surgeon.benchmarks.sets import SETS
from surgeon.benchmarks.vanilla import Vanilla, cached, crop_and_flip, fingerprint, train
from surgeon.data import read_data
from surgeon.errors import ArtefactError, LabelError, OptionError, SurgeonError
from surgeon.findings import ProbeScore
from surgeon.measure import Measures
from surgeon.methods import FFW, Finetune
from surgeon.methods.base import new_edit
from surgeon.probes import Prober
from surgeon.subject import load

# Toy searches are too short to beat a new head alone.
pytestmark = pytest.mark.usefixtures("always_masked")

SETTING = Setting(benchmark="tiny", seed=1)
RECIPE = Training(optimiser="sgd", lr=0.1, epochs=2, batch_size=32, schedule="one-cycle")


def part_of(n, share, seed, side=8):
    """Draw a bright upper or lower half, the target, on a red or blue ground, the bias."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < share
    bias = torch.where(same, target, 1 - target)
    shape = (n, 3, side, side)
    images = torch.randint(90, shape, dtype=torch.uint8, generator=generator)
    for i in range(n):
        images[i, 2 * bias[i]] += 120
        images[i, 1, : side // 2] += 100 * (target[i] == 0).byte()
        images[i, 1, side // 2 :] += 100 * (target[i] == 1).byte()
    return Part(images, target, bias[:, None])


def tiny_set(setting):
    return BenchSet(
        source="bright halves",
        target_names=("up", "down"),
        bias_names={"ground": ("red", "blue")},
        train=part_of(160, 0.95, 10 * setting.seed),
        fit=part_of(setting.rows or 80, 0.5, 10 * setting.seed + 1),
        select=part_of(40, 0.5, 10 * setting.seed + 2),
        report=part_of(80, 0.5, 10 * setting.seed + 3),
        net=setting.net or "surgeon_small_conv_net",
        training=RECIPE,
    )


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Register the tiny set, and spare the probes, which take most of the time."""
    monkeypatch.setitem(SETS, "tiny", tiny_set)
    score = ProbeScore(0.5, 0.4, 0.6, 0.5, 80, True)
    monkeypatch.setattr(Prober, "score", lambda *_, **__: score)


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
    spy(Finetune, "fit", lambda self, *_: f"finetune {self.epochs}")
    spy(surgeon.benchmarks.vanilla, "train", lambda bench: f"train {bench.training.epochs}")
    return seen


def operations(**changes):
    methods = {"ffw": FFW(epochs=1, seed=1), "ffw-structured": FFW(mode="structured", epochs=1)}
    return {name: replace(method, **changes.get(name, {})) for name, method in methods.items()}


def test_one_cycle_training_is_the_plain_loop():
    bench, epochs, size = tiny_set(SETTING), RECIPE.epochs, RECIPE.batch_size
    bench = replace(bench, train=part_of(150, 0.9, 5))
    part = bench.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = SmallConvNet(2).train()
    generator = torch.Generator().manual_seed(7)
    x = part.images.float() / 127.5 - 1
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    steps = epochs * (len(x) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // size * size].split(size):
            optimiser.zero_grad()
            cross_entropy(net(x[rows]), part.target[rows]).backward()
            optimiser.step()
            schedule.step()
    before, records = torch.get_rng_state(), []
    state = train(bench, seed=7, progress=records.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {"epoch", "epochs", "task_loss", "seconds_left"}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("steps", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", [(1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]),
    ],
)
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_schedules(monkeypatch, schedule, rates, optimiser):
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser]
    seen, step = [], kind.step

    def note(self, *args):
        assert type(self) is kind
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(kind, "step", note)
    recipe = Training(optimiser=optimiser, lr=0.01, epochs=4, batch_size=64, schedule=schedule)
    train(replace(tiny_set(SETTING), training=recipe), seed=0)
    assert seen == pytest.approx([0.01 * rate for rate in rates])


def test_crops_are_shifts_and_mirrors_on_black():
    images = torch.randint(1, 256, (60, 3, 8, 6), dtype=torch.uint8)
    made = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert made.dtype == torch.uint8
    padded = torch.zeros(60, 3, 16, 14, dtype=torch.uint8)
    padded[:, :, 4:12, 4:10] = images
    found = set()
    for i in range(60):
        for row in range(9):
            for column in range(9):
                crop = padded[i, :, row : row + 8, column : column + 6]
                for mirrored in (False, True):
                    if torch.equal(made[i], crop.flip(2) if mirrored else crop):
                        found.add((i, row, column, mirrored))
    assert {i for i, *_ in found} == set(range(60))
    assert {row for _, row, _, _ in found} == {column for _, _, column, _ in found} == set(range(9))
    assert 15 < sum(mirrored for *_, mirrored in found) < 45
    plain = crop_and_flip(images, torch.Generator().manual_seed(1))
    assert not torch.equal(plain, made)


def test_augmentation_is_used_and_seeded():
    bench = tiny_set(SETTING)
    augmented = replace(bench, training=replace(RECIPE, augment="crop-flip"))
    states = [train(b, seed=s)["fc.weight"] for b, s in ((bench, 0), (augmented, 0))]
    assert not torch.equal(*states)
    assert torch.equal(states[1], train(augmented, seed=0)["fc.weight"])


def test_networks_are_kept_by_content(tmp_path, fits):
    bench = tiny_set(SETTING)
    first = cached(bench, tmp_path, seed=0)
    other_rows = replace(bench, fit=bench.report, bias_names={"other": ("a", "b")})
    again = cached(other_rows, tmp_path, seed=0)
    assert fits == ["train 2"]
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    (path,) = (tmp_path / "vanilla").iterdir()
    assert path.name == f"{fingerprint(bench, 0)[:16]}.safetensors"
    images = bench.train.images.clone()
    images[0, 0, 0, 0] ^= 1
    changed = replace(bench, train=replace(bench.train, images=images))
    cached(changed, tmp_path, seed=0)
    cached(bench, tmp_path, seed=1)
    cached(replace(bench, training=replace(RECIPE, lr=0.05)), tmp_path, seed=0)
    assert fits == ["train 2"] * 4
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtefactError, match="is damaged; delete it"):
        cached(bench, tmp_path, seed=0)
    assert len(list((tmp_path / "vanilla").iterdir())) == 4


def test_an_unknown_network_is_refused(tmp_path):
    with pytest.raises(OptionError, match="--net: 'nix' is not a model of timm"):
        run(replace(SETTING, net="nix"), tmp_path / "out", {})
    assert not (tmp_path / "out" / "vanilla").exists()


@pytest.mark.parametrize("net", ["surgeon_small_conv_net", "test_vit"])
def test_the_owner_gets_what_was_made(tmp_path, net):
    side = 32 if net == "test_vit" else 8
    parts = {name: part_of(n, 0.5, n, side) for name, n in (("fit", 9), ("select", 7))}
    bench = replace(
        tiny_set(SETTING), net=net, train=part_of(40, 0.9, 3, side), report=part_of(8, 0.5, 4, side)
    )
    bench = replace(bench, **parts)
    state = train(bench, seed=0)
    write_owner(tmp_path / "owner", bench, Vanilla(state, 1.0), "x")
    subject = load(tmp_path / "owner")
    assert subject.label_names == ("up", "down")
    assert all(torch.equal(subject.tensors()[name], value) for name, value in state.items())
    data = read_data(subject, tmp_path / "owner" / "val.csv", bias_cols=["ground"])
    for name in ("fit", "select", "report"):
        rows, part = getattr(data, name), getattr(bench, name)
        assert torch.equal(rows.groups.target, part.target)
        # Names are sorted: blue, red.
        assert torch.equal(rows.groups.biases, 1 - part.biases)
        mean, std = (
            torch.tensor(getattr(subject.preprocessing, k)).reshape(3, 1, 1)
            for k in ("mean", "std")
        )
        expected = (part.images / 255 - mean) / std
        torch.testing.assert_close(rows.batch(torch.arange(len(part))), expected)


def test_rows_that_stand_in_two_parts_are_dropped_from_the_earlier():
    bench = tiny_set(SETTING)
    assert without_repeats(bench) == (bench, 0)
    images = bench.fit.images.clone()
    images[0], images[5], images[6] = bench.report.images[3], bench.select.images[0], images[7]
    select = bench.select.images.clone()
    select[1] = bench.report.images[9]
    repeated = replace(
        bench,
        fit=replace(bench.fit, images=images),
        select=replace(bench.select, images=select),
    )
    cleaned, dropped = without_repeats(repeated)
    assert dropped == 3
    assert torch.equal(cleaned.fit.images, images[[i for i in range(80) if i not in (0, 5)]])
    assert torch.equal(cleaned.fit.target[:4], bench.fit.target[1:5])
    assert len(cleaned.select) == 39
    assert len(cleaned.report) == 80


def test_a_run_leaves_what_it_says(tmp_path, fits):
    lines, epochs = [], []
    results = run(SETTING, tmp_path, operations(), announce=lines.append, progress=epochs.append)
    assert fits == [
        "train 2",
        "default unstructured None",
        "finetune 80",
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
        *("operations", "verdict", "against_dfr"),
    }
    assert set(main) == set(structured)
    assert main["setting"] == {
        **{"benchmark": "tiny", "seed": 1, "rho": None, "scale": "small", "net": None},
        **{"rows": None, "label_rho": None, "epochs": None},
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
        *("ffw-structured", "ffw-structured+erase"),
    ]
    assert structured["verdict"] is structured["against_dfr"] is None
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


def test_names_of_settings():
    setting = Setting(benchmark="biased-mnist", rho=0.99, seed=0)
    assert setting_name(setting) == "biased-mnist-0.99-seed-0"
    full = replace(setting, scale="paper", rows=300, label_rho=0.9, net="test_resnet")
    assert setting_name(full) == "biased-mnist-0.99-seed-0-paper-n300-labels0.9-test_resnet"
    several = [
        *(setting, full, replace(setting, rho=None), replace(setting, rho=0.9900000001)),
        *(replace(setting, scale="paper"), replace(setting, rows=1), replace(setting, seed=1)),
        *(replace(setting, net=f"hf-hub:a{slash}b") for slash in ("/", "%2F")),
        *(replace(setting, net="a-b", seed=1), replace(setting, net="a%2Db", seed=1)),
    ]
    names = [setting_name(s, epochs) for s in several for epochs in (None, 1, 11)]
    assert len(set(names)) == len(names)
    assert all("/" not in name for name in names)


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


def test_groups_by_alignment_by_hand():
    own = {"left": {"0": "a", "1": "b"}, "right": {"0": "c", "1": "c"}}
    rows = [
        *(("0", "a", "c", 10, 0.9), ("1", "b", "c", 30, 0.7), ("0", "a", "d", 4, 0.5)),
        *(("0", "b", "c", 0, None), ("1", "a", "c", 5, 0.2), ("1", "a", "d", 8, 0.125)),
    ]
    groups = [
        {"target": t, "bias": {"left": x, "right": y}, "n": n, "accuracy": a}
        for t, x, y, n, a in rows
    ]
    found = by_alignment(groups, own)
    assert [(g["aligned"]["left"], g["aligned"]["right"], g["n"]) for g in found["groups"]] == [
        *((True, True, 40), (True, False, 4), (False, True, 5), (False, False, 8)),
    ]
    accuracies = [group["accuracy"] for group in found["groups"]]
    assert accuracies == pytest.approx([0.75, 0.5, 0.2, 0.125])
    assert found["mean"] == pytest.approx(0.39375)
    assert found["gap"]["left"] == pytest.approx(32 / 44 - 2 / 13)
    assert found["gap"]["right"] == pytest.approx(31 / 45 - 3 / 12)
    alone = by_alignment(groups[:2], own)
    assert alone["mean"] is None
    assert alone["gap"] == {"left": None, "right": None}


def test_own_values_are_those_of_the_training_rows():
    bench = tiny_set(SETTING)
    assert own_values(bench) == {"ground": {"up": "red", "down": "blue"}}
    biases = torch.zeros_like(bench.train.biases)
    shared = replace(bench, train=replace(bench.train, biases=biases))
    assert own_values(shared) == {"ground": {"up": "red", "down": "red"}}


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


def test_capped_finetuning_and_probes_of_every_row_are_asked_for():
    measures = runner._measures(SETTING, 3)
    assert measures == Measures(
        with_finetune=True, finetune_epochs=3, mlp_every_row=True, seed=SETTING.seed
    )


def command(*words):
    result = CliRunner().invoke(app, ["bench", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def digits_on_disk(tmp_path, monkeypatch):
    """Write bars of two classes in MNIST's format: enough for ten report rows in each group."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for seed, (prefix, n) in enumerate((("train", 200), ("t10k", 200))):
        rng = np.random.default_rng(seed)
        labels = (np.arange(n) % 2).astype(np.uint8)
        images = np.zeros((n, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = rng.integers(4, 22, 2)
            image[
                (slice(row, row + 3), slice(None))
                if label
                else (slice(None), slice(column, column + 3))
            ] = 255
            image[rng.integers(28, size=3), rng.integers(28, size=3)] = 9
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes(), 1))
    monkeypatch.setenv("SURGEON_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def test_the_command_runs_the_papers_scale_capped(digits_on_disk):
    words = ["biased-mnist", "--scale", "paper", "--net", "surgeon_small_conv_net", "--seed", 0]
    words += ["--rows", 60]
    result = command(*words, "--epochs", 1, "--operation", "ffw")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("## biased-mnist, paper scale\n")
    assert (
        "### rho 0.99, net surgeon_small_conv_net, 60 labelled rows, at most 1 epochs\n"
        in result.stdout
    )
    assert "\n| ffw+erase | 1 | " in result.stdout
    assert "biased-mnist-0.99-seed-0-paper-n60-epochs1" in result.stderr
    name = "biased-mnist-0.99-seed-0-paper-n60-epochs1-surgeon_small_conv_net"
    assert (Path("bench") / "results" / f"{name}-ffw.json").is_file()
    again = command(*words, "--epochs", 1, "--operation", "ffw", "--json", "--quiet")
    assert again.stderr == ""
    (document,) = json.loads(again.stdout)["results"]
    assert document["source"].startswith("digits in MNIST's format")
    left_out = command("table")
    assert left_out.exit_code == 1
    assert left_out.stderr.splitlines() == [
        "note: 1 results of runs with --epochs are left out",
        "error: every result is of a run with --epochs; run one without",
    ]


def test_the_command_counts_seeds_and_keeps_results_when_interrupted(monkeypatch, tmp_path):
    seen = []

    def stand_in(setting, out, operations, **kwargs):
        seen.append((setting, sorted(operations), kwargs["epochs"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(runner, "run", stand_in)
    words = ["cifar10s", "--out", tmp_path, "--rows", 300, "--label-rho", 0.9]
    result = command(*words)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "interrupted: finished results are kept; run the command again"
    ]
    assert [setting.seed for setting, *_ in seen] == [0, 1, 2]
    expected = Setting(benchmark="cifar10s", seed=0, rho=0.95, rows=300, label_rho=0.9)
    assert seen[0] == (expected, ["ffw", "ffw-paper", "ffw-structured"], None)
    command("multi-color-mnist", "--seeds", 1, "--out", tmp_path)
    assert seen[-1][0] == Setting(benchmark="multi-color-mnist", seed=0)


def test_refit_says_what_it_timed():
    times = json.loads(CliRunner().invoke(app, ["bench", "refit", "--json"]).stdout)
    assert times["rows"] == 400
    assert 1 < times["epochs"] <= 200
    assert times["ratio"] == pytest.approx(times["network_s"] / times["cached_s"])


def test_every_benchmark_is_a_command():
    import typer

    group = typer.main.get_command(app).commands["bench"]
    assert set(group.commands) == (set(SETS) - {"tiny"}) | {"step", "refit", "table"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("biased-mnist --rho nan", 2, "error: --rho: found nan, expected 0 to 1"),
        ("biased-mnist --seed 1 --seeds 2", 2, "error: --seed and --seeds: found both"),
        ("biased-mnist --operation nix", 2, "error: --operation: found 'nix'"),
        ("biased-mnist --scale huge", 2, "error: --scale: found 'huge'"),
        ("digits --device tpu", 2, "error: --device: 'tpu' cannot be used here"),
        ("digits --net nix", 2, "error: --net: "),
        ("multi-color-mnist --rho 0.5", 2, "error: --rho: multi-color-mnist"),
        ("biased-mnist --seed 0", 1, "error: SURGEON_DATA: is not set"),
        ("table nowhere", 1, "error: nowhere: no results in it"),
        ("biased-mnist --seeds 0", 2, "Usage: "),
        ("biased-mnist --rows 0", 2, "Usage: "),
        ("biased-mnist --epochs 0", 2, "Usage: "),
    ],
)
def test_hostile_options(words, code, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_DATA", raising=False)
    result = command(*words.split())
    assert result.exit_code == code
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    if message.startswith("error"):
        assert lines[-1].startswith(message)
        assert sum(line.startswith("error") for line in lines) == 1
    else:
        assert lines[0].startswith(message)
    assert list(tmp_path.iterdir()) == []


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
