"""Programs beside a checkpoint: they compute what the network computes, for any batch."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import onnxruntime
import pytest
import torch

from surgeon import formats
from surgeon.errors import ArtefactError, IncompatibleError, OptionError
from surgeon.formats import Formats, write_programs


def images(subject, n):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, *subject.preprocessing.input_size, generator=generator)


def agrees(subject, folder):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    program = torch.export.load(folder / "model.pt2").module()
    for n in (1, 4):
        x = images(subject, n)
        wanted = subject.forward(x)[1]
        (logits,) = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.tensor(logits), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(program(x), wanted, rtol=1e-4, atol=1e-5)


BOTH = Formats(onnx=True, torch_export=True)


def test_programs_agree(pico, tmp_path, capfd):
    subject = pico("test_efficientnet", 64)
    write_programs(subject, BOTH, tmp_path)
    agrees(subject, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("net", ["test_resnet", "test_vit", "test_convnext"])
def test_programs_of_other_families_agree(pico, net, tmp_path):
    subject = pico(net, 160)
    write_programs(subject, BOTH, tmp_path)
    agrees(subject, tmp_path)


def test_nothing_asked_for_writes_nothing(pico, tmp_path):
    write_programs(pico("test_resnet", 64), Formats(), tmp_path)
    assert not list(tmp_path.iterdir())


class Moody(torch.nn.Module):
    """Takes another way by what it sees, or has another answer each time."""

    def __init__(self, mood):
        super().__init__()
        self.mood, self.fc = mood, torch.nn.Linear(3, 2)

    def forward(self, x):
        x = x.mean((2, 3))
        if self.mood == "branches" and x.sum() > 0:
            x = x + 1
        if self.mood == "shifts" and not torch.compiler.is_compiling():
            x = x + 1
        return self.fc(x)


@pytest.mark.parametrize(
    ("mood", "error", "match"),
    [
        ("branches", IncompatibleError, r"cannot be traced .* without --torch-export"),
        ("shifts", ArtefactError, r"model.pt2: its logits differ"),
    ],
)
def test_what_cannot_be_written_is_refused(pico, tmp_path, mood, error, match):
    subject = pico(lambda: Moody(mood), 8)
    with pytest.raises(error, match=match):
        write_programs(subject, replace(BOTH, onnx=False), tmp_path)


def test_missing_packages_are_named(monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        formats.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else known(n)
    )
    with pytest.raises(OptionError, match=r"--onnx: needs onnxruntime; pip install"):
        Formats(onnx=True)
