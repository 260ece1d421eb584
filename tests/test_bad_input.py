"""What a user can get wrong ends in one line, an exit code, and nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from surgeon_cli.main import app
from typer.testing import CliRunner

import surgeon
import surgeon.architecture
from surgeon.head import Head
from surgeon.identification import Match

MODEL = "model.safetensors"


class Trap:
    """Leaves a file behind where it is unpickled carelessly."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.fixture(autouse=True)
def unknown(monkeypatch):
    """Let a state dict without a config be of no known network."""
    monkeypatch.setattr(surgeon.architecture, "identify", lambda _: Match((), (), 1))


@dataclass(frozen=True, kw_only=True)
class Case:
    words: str
    """What the message must hold."""
    code: int = 1
    spoil: Callable[[Path], object] = lambda folder: None
    args: str = ""
    """Further arguments of prune, or a whole command that starts with `surgeon`."""
    checkpoint: str = MODEL


def listing(folder):
    return {
        str(path.relative_to(folder)): path.is_file()
        and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


def rewrite(change, name=MODEL):
    """Change a file's bytes."""

    def spoil(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


def replace(old, new, times=1):
    """Change the text of the label file."""

    def change(text):
        assert text.count(old.encode()) >= times
        return text.replace(old.encode(), new.encode(), times)

    return rewrite(change, "val.csv")


def configure(**changes):
    """Change keys of config.json."""
    return rewrite(lambda text: json.dumps({**json.loads(text), **changes}).encode(), "config.json")


def relabel(part):
    """Add a split column: the part of each row by its number."""

    def change(text):
        head, *rows = text.decode().splitlines()
        rows = [f"{row},{part(i)}" for i, row in enumerate(rows)]
        return "\n".join([f"{head},split", *rows]).encode()

    return rewrite(change, "val.csv")


def with_nan(folder):
    tensors = load_file(folder / MODEL)
    tensors["classifier.weight"][1, :2] = torch.nan
    save_file(tensors, folder / MODEL)


def pickled(content):
    return lambda folder: torch.save(content, folder / "model.pt")


def cut_pickle(folder):
    torch.save(load_file(folder / MODEL), folder / "model.pt")
    rewrite(lambda data: data[: len(data) // 2], "model.pt")(folder)


def sixteen_bits(folder):
    Image.fromarray(np.full((32, 32), 300, np.uint16)).save(folder / "images" / "7.png")


def outside(folder):
    shutil.move(folder / "images" / "7.png", folder.parent / "7.png")
    replace("images/7.png", "../7.png")(folder)


def twins(folder):
    """Give two images equal pixels, under other names and in other parts."""
    shutil.copy(folder / "images" / "0.png", folder / "images" / "1.png")
    relabel(lambda i: ["fit", "report", "select"][i % 3])(folder)


def result_with_an_input(folder):
    (folder / "surgeon.json").touch()


def a_folder_of_mine(folder):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").touch()


def factories(folder):
    (folder / "nets_of_mine.py").write_text(
        "from torch.nn import Flatten, Linear, ReLU, Sequential\n"
        "def ends_in_relu(): return Sequential(Flatten(), Linear(3072, 2), ReLU())\n"
        "def number(): return 7\n"
        "constant = 7\n"
    )
    save_file(
        {"1.weight": torch.ones(2, 3072), "1.bias": torch.ones(2)}, folder / "mine.safetensors"
    )


def edit(**fields):
    known = {
        "architecture": "timm:test_efficientnet",
        "method": "ffw",
        "head": Head(("classifier",)),
    }
    return lambda folder: surgeon.Edit(**{**known, **fields}).save(folder / "edit.safetensors")


HEAD = "surgeon head model.safetensors --bias-labels val.csv"
MASK = "surgeon mask model.safetensors --bias-labels val.csv"
FINETUNE = "surgeon finetune model.safetensors --bias-labels val.csv"
CASES = {
    # the checkpoint
    "no checkpoint": Case(words="gone.pt: no such file", checkpoint="gone.pt"),
    "a folder without a model": Case(
        words="images/model.safetensors: no such", checkpoint="images"
    ),
    "another suffix": Case(words="found suffix '.csv', expected .safe", checkpoint="val.csv"),
    "no bytes": Case(words="not a valid safetensors", spoil=rewrite(lambda data: b"")),
    "cut": Case(words="copy or download it again", spoil=rewrite(lambda data: data[:-100])),
    "header cut": Case(words="not a valid safetensors", spoil=rewrite(lambda data: data[:1000])),
    "header larger than the file": Case(
        words="not a valid safetensors",
        spoil=rewrite(lambda data: (10**7).to_bytes(8, "little") + data[8:]),
    ),
    "header of nonsense": Case(
        words="not a valid safetensors",
        spoil=rewrite(lambda data: data[:8] + b"\xff" * 40 + data[48:]),
    ),
    "no tensors": Case(words="holds no tensors", spoil=lambda f: save_file({}, f / MODEL)),
    "NaN weights": Case(
        words="  classifier.weight: 2 of 512 values",
        spoil=with_nan,
    ),
    "malicious pickle": Case(
        words="needs code execution; save its state_dict",
        spoil=lambda f: (f / "model.pt").write_bytes(pickle.dumps({"a": Trap()})),
        checkpoint="model.pt",
    ),
    "malicious archive": Case(
        words="needs code execution", spoil=pickled({"a": Trap()}), checkpoint="model.pt"
    ),
    "a list": Case(words="holds a list", spoil=pickled([1, 2]), checkpoint="model.pt"),
    "more than tensors": Case(
        words="2 entries are not tensors; save the state dict alone\n  epoch: int\n  name: str",
        spoil=pickled({"epoch": 3, "name": "x", "w": torch.ones(1)}),
        checkpoint="model.pt",
    ),
    "pickle cut": Case(
        words="not a readable PyTorch file", spoil=cut_pickle, checkpoint="model.pt"
    ),
    "config is no JSON": Case(
        words="config.json: not valid JSON", spoil=rewrite(lambda text: text[:-1], "config.json")
    ),
    "config is a list": Case(
        words="config.json: holds a list", spoil=rewrite(lambda text: b"[]", "config.json")
    ),
    "config of other kinds": Case(
        words="  'model_args': found \"img_size\", expected an object",
        spoil=configure(model_args="img_size", pretrained_cfg=[], label_names=3, num_classes="2"),
    ),
    "config with an unusable mean": Case(
        words="mean is ['a'], expected 3 numbers",
        spoil=configure(pretrained_cfg={"input_size": [3, 32, 32], "mean": ["a"], "std": [1]}),
    ),
    "too many names": Case(
        words="found 3 label_names, the head has 2", spoil=configure(label_names=["a", "b", "c"])
    ),
    "no config": Case(
        words="fit none of 1 networks; pass --arch timm:NAME",
        spoil=lambda folder: (folder / "config.json").unlink(),
    ),
    "other network": Case(
        words="keys do not fit timm:test_resnet; check --arch",
        args="--arch timm:test_resnet",
    ),
    "other number of classes": Case(
        words="  classifier.weight: found [2, 256], expected [3, 256]",
        spoil=configure(num_classes=3),
    ),
    "no linear layer at the end": Case(
        words="expected one linear layer whose output is the logits",
        spoil=factories,
        args="--factory nets_of_mine:ends_in_relu",
        checkpoint="mine.safetensors",
    ),
    "a factory of no network": Case(
        words="returned a int, expected a torch.nn.Module",
        spoil=factories,
        args="--factory nets_of_mine:number",
    ),
    "unknown argument of the network": Case(
        words="cannot be built", args="--model-kwargs colour=1"
    ),
    # the labels and the images
    "no labels": Case(words="no such file", spoil=lambda f: (f / "val.csv").unlink()),
    "empty labels": Case(words="is empty", spoil=rewrite(lambda text: b"", "val.csv")),
    "no rows": Case(words="and no rows", spoil=rewrite(lambda t: t.splitlines()[0], "val.csv")),
    "other encoding": Case(
        words="not UTF-8", spoil=rewrite(lambda t: t.decode().encode("utf-16"), "val.csv")
    ),
    "no such column": Case(
        words="  no column 'colour'; found 'path', 'target'", args="--bias-col colour"
    ),
    "a column of two roles": Case(words="asked for 2 times", args="--audit-col bias"),
    "blank label": Case(
        words="  row 2: column 'bias' is blank", spoil=replace("cat,blue", "cat,  ")
    ),
    "unknown label": Case(
        words="  row 3: target 'dgo' in column 'target', expected one of 'cat', 'dog'",
        spoil=replace("dog", "dgo"),
    ),
    "one image twice": Case(
        words="  row 3: path 'images/0.png' is the image of row 2", spoil=replace("1.png", "0.png")
    ),
    "no images": Case(
        words="no image 'images/19.png' under .\n  + 40 more",
        spoil=lambda folder: (folder / "images").rename(folder / "pictures"),
    ),
    "broken images": Case(
        words="2 of 60 images cannot be used; correct the files or remove their rows\n  row 9: ",
        spoil=lambda folder: [
            rewrite(lambda data: data[:200], f"images/{i}.png")(folder) for i in (7, 8)
        ],
    ),
    "an image outside": Case(words="  row 9: path '../7.png' leaves", spoil=outside),
    "no root": Case(words="gone: no such folder", args="--images gone"),
    "16 bits": Case(words="pass --sixteen-bit scale or clip", spoil=sixteen_bits),
    "one target": Case(words="  column 'target' has the one", spoil=replace("dog", "cat", 30)),
    "one bias": Case(words="  column 'bias' has the one", spoil=replace("red", "blue", 30)),
    "no eligible group": Case(
        words="the largest group has 3 report rows, expected at least 10", args="--min-group 10"
    ),
    "no part to report": Case(
        words="report would have no row of 60; use fit, select and report",
        spoil=relabel(lambda i: "val" if i % 5 else "train"),
    ),
    "unknown part": Case(words="split 'dev', expected", spoil=relabel(lambda i: "dev")),
    "one image in two parts": Case(words="  equal images in rows 2 (fit), 3 (rep", spoil=twins),
    "no such training count": Case(
        words="  row 3: no such group",
        spoil=lambda f: (f / "n.csv").write_text("target,bias,count\ncat,red,5\ncow,red,5\n"),
        args="--train-counts n.csv",
    ),
    # the folder to make
    "there already": Case(words="pass --force", args="--out images"),
    "no earlier result": Case(
        words="is not an earlier result", spoil=a_folder_of_mine, args="--out out --force"
    ),
    "no folder to write to": Case(words="is not a folder you can", args="--out val.csv/deep/out"),
    "an input inside": Case(
        words="holds an input", spoil=result_with_an_input, args="--out ../folder --force"
    ),
    # the options
    "device": Case(code=2, words="--device: 'tpu' cannot be used here", args="--device tpu"),
    "device without data": Case(code=2, words="--device: 'meta'", args="--device meta"),
    "precision": Case(code=2, words="found 'half', expected bfloat16", args="--amp-dtype half"),
    "mode": Case(code=2, words="--mode: found 'x', expected unstr", args="--mode x"),
    "recipe": Case(code=2, words="--recipe: found 'x', expected default or p", args="--recipe x"),
    "balance": Case(code=2, words="--balance: found 'x', expected groups or", args="--balance x"),
    "gamma below 0": Case(code=2, words="--gamma: found -1.0, expected 0", args="--gamma -1"),
    "gamma of nan": Case(code=2, words="--gamma: found nan, expected 0 or", args="--gamma nan"),
    "lr of 0": Case(code=2, words="--lr: found 0.0, expected more than 0", args="--lr 0"),
    "no epochs": Case(code=2, words="--epochs: found 0, expected 1 or more", args="--epochs 0"),
    "a row per step": Case(code=2, words="--batch-size: found 1, expect", args="--batch-size 1"),
    "gates on classes": Case(
        code=2, words="expected unstructured", args="--gate-head --mode structured"
    ),
    "gated head refitted": Case(
        code=2, words="--refit-head: found with --gate-head", args="--gate-head --refit-head"
    ),
    "sweep of words": Case(code=2, words="expected gamma=2,5,10,20", args="--sweep gamma=a"),
    "sweep of another": Case(code=2, words="--sweep: found 'lr=1'", args="--sweep lr=1"),
    "sweep out of range": Case(code=2, words="found -2.0", args="--sweep gamma=1,-2"),
    "aligned without target": Case(
        code=2, words="expected bias=value:target", args="--aligned bias=red"
    ),
    "aligned by an unknown column": Case(
        code=2, words="  bias column 'hue' is not among {bias}", args="--aligned hue=red:dog"
    ),
    "aligned by unknown names": Case(
        code=2, words="  target 'cow' is not among {cat, dog}", args="--aligned bias=red:cow"
    ),
    "network argument": Case(
        code=2, words="found 'drop', expected KEY=VALUE", args="--model-kwargs drop"
    ),
    "unknown network": Case(code=2, words="not a model of timm or", args="--arch resnet_of_mine"),
    "unknown network of timm": Case(
        code=2, words="'resnet_of_mine' is not a model of timm", args="--arch timm:resnet_of_mine"
    ),
    "unknown library": Case(code=2, words="found library 'keras'", args="--arch keras:resnet"),
    "two sources": Case(code=2, words="found both", args="--arch timm:vit --factory a:b"),
    "no function": Case(code=2, words="expected package.module:function", args="--factory nets"),
    "no such module": Case(code=2, words="cannot be imported", args="--factory gone_astray:net"),
    "no function by that name": Case(
        code=2,
        words="is a int, expected a function",
        spoil=factories,
        args="--factory nets_of_mine:constant",
    ),
    "input of no size": Case(code=2, words="input_size is (3, 0, 0)", args="--input-size 3 0 0"),
    "crop in percent": Case(code=2, words="crop_pct is 87.5", args="--crop-pct 87.5"),
    "16 bits, unknown": Case(code=2, words="expected one of scale", args="--sixteen-bit cut"),
    # other commands
    "edit of another base": Case(
        words="the edit expects 000000000000 (timm:test_efficientnet); give the checkpoint",
        spoil=edit(base_sha256="0" * 64),
        args="surgeon apply model.safetensors edit.safetensors",
    ),
    "no edit": Case(
        words="model.safetensors: not an edit",
        args="surgeon apply model.safetensors model.safetensors",
    ),
    "edit gone": Case(
        words="gone.safetensors: no such file",
        args="surgeon apply model.safetensors gone.safetensors",
    ),
    "apply onto something": Case(
        words="exists already; pass --force",
        spoil=edit(base_sha256="0" * 64),
        args="surgeon apply model.safetensors edit.safetensors --out images",
    ),
    "audit of unknown names": Case(
        code=2,
        words="  value of bias 'grey' is not among {blue, red}",
        args="surgeon audit model.safetensors --bias-labels val.csv --aligned bias=grey:dog",
    ),
    "inspection of bad labels": Case(
        words="  row 3: target 'dgo'",
        spoil=replace("dog", "dgo"),
        args="surgeon inspect model.safetensors --bias-labels val.csv",
    ),
    "head of another family": Case(
        code=2, words="--method: found 'ffw', expected dfr or leace", args=f"{HEAD} --method ffw"
    ),
    "mask of another family": Case(
        code=2, words="found 'dfr', expected gba-mask or mag", args=f"{MASK} --method dfr"
    ),
    "mask of more than all": Case(
        code=2, words="--sparsity: found 2.0, expected 0 to 1", args=f"{MASK} --sparsity 2"
    ),
    "head onto something": Case(words="exists already", args=f"{HEAD} --out images"),
    "head of bad labels": Case(
        words="  row 3: target 'dgo'", spoil=replace("dog", "dgo"), args=HEAD
    ),
    "fine-tuning of another family": Case(
        code=2, words="found 'ffw', expected finetune or gr", args=f"{FINETUNE} --method ffw"
    ),
    "no epochs of fine-tuning": Case(
        code=2, words="--epochs: found 0, expected 1 or", args=f"{FINETUNE} --epochs 0"
    ),
    "step of fine-tuning": Case(
        code=2, words="--lr: found nan, expected more", args=f"{FINETUNE} --lr nan"
    ),
    "a row per step of fine-tuning": Case(
        code=2, words="--batch-size: found 1, exp", args=f"{FINETUNE} --batch-size 1"
    ),
    "order of fine-tuning": Case(
        code=2, words="--balance: found 'x', expected gr", args=f"{FINETUNE} --balance x"
    ),
    "demo onto something": Case(words="exists already", args="surgeon demo --out images"),
    "demo elsewhere": Case(code=2, words="--device: 'tpu'", args="surgeon demo --device tpu"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_mistake_is_one_line_and_changes_nothing(tiny, tmp_path, monkeypatch, case):
    folder = tmp_path / "folder"
    shutil.copytree(tiny, folder)
    case.spoil(folder)
    before = listing(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "nets_of_mine", raising=False)
    for name in ("FFW", "DFR", "Leace", "Finetune"):
        monkeypatch.setattr(getattr(surgeon, name), "fit", lambda *_, **__: pytest.fail("fitted"))
    prune = f"surgeon prune {case.checkpoint} --bias-labels val.csv --min-group 3 {case.args}"
    command = case.args if case.args.startswith("surgeon ") else prune
    result = CliRunner().invoke(app, command.split()[1:])
    if not isinstance(result.exception, SystemExit):
        raise AssertionError(result.stderr) from result.exception
    assert result.exit_code == case.code
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    summaries = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(summaries) == 1
    message = lines[summaries[0] :]
    assert case.words in "\n".join(message)
    assert re.search(r"expected|; ", message[0])
    assert all(line.startswith("  ") for line in message[1:])
    assert len(message) <= 21 or (
        len(message) == 22 and re.fullmatch(r"  \+ \d+ more", message[21])
    )
    assert listing(tmp_path) == before


@pytest.mark.parametrize("command", ["prune", "prune model.safetensors", "prune a --colour", "go"])
def test_a_wrong_command_line_is_an_option_error(command):
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert result.stdout == ""
