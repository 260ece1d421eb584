"""Operations side by side: rows, controls, the choice, and what an interruption leaves."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

import surgeon
from surgeon.data import extract
from surgeon.edit import Edit
from surgeon.errors import ArtefactError, LabelError, OptionError
from surgeon.measure import Measures
from surgeon.methods import DFR, FFW, VCBA, Finetune, Leace, Magnitude, Method, Random
from surgeon.methods.base import new_edit, select_loss

pytestmark = pytest.mark.usefixtures("spared", "always_masked")

METHODS: dict[str, Method] = {
    "leace": Leace(),
    "magnitude": Magnitude(),
    "random": Random(),
    "ffw": FFW(epochs=2),
    "finetune": Finetune(epochs=2),
    "vcba": VCBA(epochs=1),
}


@pytest.fixture
def fits(monkeypatch):
    """Count the fits of every method; `vcba` is refused."""
    seen = Counter()

    def spy(kind, own):
        def fit(self, *args, **kwargs):
            seen[self.name] += 1
            return own(self, *args, **kwargs)

        monkeypatch.setattr(kind, "fit", fit)

    for kind in (Leace, Magnitude, Random, FFW, Finetune):
        spy(kind, kind.fit)

    def refuse(self, *_, **__):
        seen["vcba"] += 1
        raise LabelError("val.csv: 1 bias values with one kind of rows")

    monkeypatch.setattr(VCBA, "fit", refuse)
    return seen


@pytest.fixture(scope="module")
def owner(tiny):
    return read_owner(tiny)


def read_owner(folder):
    subject = surgeon.load(folder)
    return subject, surgeon.read_data(subject, folder / "val.csv")


MEASURES = Measures(min_group=1)
run = partial(surgeon.compare, measures=MEASURES)


def untimed(comparison):
    document = json.loads(json.dumps(comparison.to_json()))
    for row in document["operations"]:
        del row["seconds"]
    return document


def test_every_operation_has_its_rows_and_one_is_shipped(owner, tmp_path, fits):
    subject, data = owner
    lines = []
    found = run(subject, data, METHODS, tmp_path / "out", announce=lines.append)
    names = [row.name for row in found.operations]
    assert names == [
        *("vanilla", "leace", "magnitude+erase", "magnitude", "random+erase", "random"),
        *("ffw", "ffw+erase", "finetune"),
    ]
    assert found.failed == {"vcba": "val.csv: 1 bias values with one kind of rows"}
    assert "vcba: failed: val.csv: 1 bias values with one kind of rows" in lines
    assert fits == {"leace": 1, "magnitude": 1, "random": 5, "ffw": 1, "finetune": 1, "vcba": 1}
    rows = {row.name: row for row in found.operations}
    for control in ("magnitude", "random"):
        assert rows[control].sparsity.gated == pytest.approx(rows["ffw"].sparsity.gated)
    assert set(names) - set(found.verdicts) == {"vanilla", "random", "random+erase"}
    assert {verdict.against for verdict in found.verdicts.values()} == {"vanilla"}
    for name, verdict in found.verdicts.items():
        gain = rows[name].audit["balanced_accuracy"] - rows["vanilla"].audit["balanced_accuracy"]
        assert verdict.balanced.difference == pytest.approx(gain)
    # What is exported can be shipped, vanilla too; means of draws cannot.
    shippable = {"vanilla", "leace", "magnitude", "ffw+erase", "finetune"}
    assert set(found.select_loss) == shippable
    assert found.select_loss[found.ship] == min(found.select_loss.values())
    assert found.select_loss["vanilla"] == pytest.approx(
        select_loss(extract(subject, data.select).logits, data.select.groups)
    )
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {key: document[key] for key in ("operations", "failed", "ship")} == json.loads(
        json.dumps(found.to_json())
    )


def test_what_is_shipped_is_the_edit_of_its_row(owner, tmp_path, fits):
    subject, data = owner
    best = {"finetune": METHODS["finetune"], "leace": METHODS["leace"]}
    found = run(subject, data, best, tmp_path / "out")
    assert found.folder == tmp_path / "out" / "ship"
    method = found.ship
    shipped = surgeon.load(found.folder)
    edit = Edit.load(tmp_path / "out" / "edits" / f"{method}.safetensors")
    assert shipped.fingerprint() == surgeon.apply(subject, edit).fingerprint()
    logits = extract(shipped, data.select).logits
    assert found.select_loss[method] == pytest.approx(
        select_loss(logits, data.select.groups), rel=1e-5
    )
    report = json.loads((found.folder / "report.json").read_text())
    assert [row["name"] for row in report["operations"]][-1] == method
    assert report["verdict"]["word"] == found.verdicts[method].word
    assert any("least loss on select rows" in note for note in report["notes"])


def test_a_checkpoint_that_nothing_betters_is_shipped_as_it_is(owner, tmp_path, monkeypatch):
    subject, data = owner

    def ruin(self, subject, *_, **__):
        weight = f"{subject.head}.weight"
        return new_edit(subject, "leace", updates={weight: -subject.tensors()[weight]})

    monkeypatch.setattr(Leace, "fit", ruin)
    # An untrained network loses nothing by a flipped head.
    better = surgeon.apply(subject, DFR().fit(subject, data))
    found = run(better, data, {"leace": Leace()}, tmp_path / "out")
    assert found.ship == "vanilla"
    assert found.folder is None
    assert not (tmp_path / "out" / "ship").exists()


def test_an_interrupted_comparison_goes_on_where_it_was(owner, tmp_path, fits, monkeypatch):
    subject, data = owner
    whole = untimed(run(subject, data, METHODS, tmp_path / "whole"))
    fits.clear()
    with monkeypatch.context() as patch:

        def interrupt(self, *_, **__):
            raise KeyboardInterrupt

        patch.setattr(Finetune, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(subject, data, METHODS, tmp_path / "out")
    assert fits == {"ffw": 1, "leace": 1}
    fits.clear()
    lines = []
    again = run(subject, data, METHODS, tmp_path / "out", announce=lines.append)
    assert untimed(again) == whole
    assert fits == {"finetune": 1, "vcba": 1, "magnitude": 1, "random": 5}
    assert {"vanilla: used again", "ffw: used again", "leace: used again"} < set(lines)
    fits.clear()
    assert untimed(run(subject, data, METHODS, tmp_path / "out")) == whole
    assert fits == {"vcba": 1}


def test_what_changed_is_done_anew(owner, tmp_path, fits):
    subject, data = owner
    methods = {name: METHODS[name] for name in ("magnitude", "ffw", "leace")}
    out = tmp_path / "out"
    run(subject, data, methods, out)
    fits.clear()
    # Another search moves the controls, and nothing else.
    run(subject, data, {**methods, "ffw": FFW(epochs=2, lr=0.05)}, out)
    assert fits == {"ffw": 1, "magnitude": 1}
    fits.clear()
    (out / "edits" / "leace.safetensors").write_bytes(b"")
    run(subject, data, {"leace": METHODS["leace"]}, out)
    assert fits == {"leace": 1}
    fits.clear()
    run(subject, data, {"leace": METHODS["leace"]}, out, force=True)
    assert fits == {"leace": 1}
    assert not (out / "edits" / "ffw.safetensors").exists()


def test_a_folder_of_something_else_is_left_alone(owner, tmp_path, fits):
    subject, data = owner
    methods, out = {"leace": METHODS["leace"]}, tmp_path / "out"
    run(subject, data, methods, out)
    with pytest.raises(ArtefactError, match="comparison with other measures; pass --force to"):
        run(subject, data, methods, out, measures=replace(MEASURES, seed=1))
    fewer = replace(data, report=data.select)
    with pytest.raises(ArtefactError, match="comparison with other rows"):
        run(subject, fewer, methods, out)
    (out / "rows" / "leace.json").write_text("[]")
    with pytest.raises(ArtefactError, match=r"leace\.json: cannot be read \(not an object\)"):
        run(subject, data, methods, out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").touch()
    for force in (False, True):
        with pytest.raises(ArtefactError, match="is not an earlier result"):
            run(subject, data, methods, mine, force=force)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    with pytest.raises(OptionError, match="--jobs: found 2, expected 1 where nothing reads"):
        run(subject, data, methods, tmp_path / "new", jobs=2)
    assert not (tmp_path / "new").exists()


def test_a_network_that_cannot_be_measured_ends_it(owner, tmp_path, monkeypatch):
    subject, data = owner

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("surgeon.entry.Ruler.audit", broken)
    with pytest.raises(surgeon.SurgeonError, match="vanilla: RuntimeError: out of memory"):
        run(subject, data, {"leace": METHODS["leace"]}, tmp_path / "out")


@pytest.mark.slow
def test_processes_find_what_one_finds(tiny, tmp_path):
    # Probes and searches run as they are: what a fixture replaces, other processes do not know.
    subject, data = read_owner(tiny)
    methods = {"leace": Leace(), "dfr": DFR()}
    threads = torch.get_num_threads()
    found = surgeon.compare(
        subject,
        data,
        methods,
        tmp_path / "two",
        measures=replace(MEASURES, mlp=False),
        jobs=2,
        read=partial(read_owner, tiny),
    )
    assert torch.get_num_threads() == threads
    here = surgeon.compare(
        subject, data, methods, tmp_path / "one", measures=replace(MEASURES, mlp=False)
    )
    assert found.ship == here.ship
    assert found.select_loss == pytest.approx(here.select_loss)
    names = [row.name for row in found.operations]
    assert names == [row.name for row in here.operations] == ["vanilla", "leace", "dfr"]
