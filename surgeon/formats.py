"""In which shapes and formats a checkpoint is written, and proof that each computes the same."""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from surgeon.errors import ArtefactError, IncompatibleError, OptionError
from surgeon.subject import Subject, as_saved_

# Other kernels, in float32.
_TOLERANCE = 1e-4
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Formats:
    """In which shapes and formats an export writes the checkpoint."""

    slice: bool = False
    """Cut out what is switched off, so that the checkpoint is smaller."""
    round_to: int = 1
    """What the number of units of a sliced layer is a multiple of, as far as it goes."""
    full: bool = False
    """Write the checkpoint in its full shapes too, in the folder `full`."""
    onnx: bool = False
    """Write `model.onnx` too."""
    torch_export: bool = False
    """Write `model.pt2` too, a program that `torch.export.load` reads."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.round_to < 1:
            raise OptionError(f"--round-to: found {self.round_to}, expected 1 or more")
        if (self.full or self.round_to > 1) and not self.slice:
            flag = "--full" if self.full else "--round-to"
            raise OptionError(f"{flag}: changes nothing without --slice; pass that too")
        missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if self.onnx and missing:
            raise OptionError(
                f"--onnx: needs {', '.join(missing)}; pip install 'debias-surgeon[onnx]'"
            )


def write_programs(subject: Subject, formats: Formats, folder: Path) -> None:
    """Write the programs that were asked for, and compare their logits with the network's.

    Both take any number of images.

    Args:
        subject: The network as it is exported.
        formats: What was asked for.
        folder: Where `model.onnx` and `model.pt2` are written.

    Raises:
        IncompatibleError: The network cannot be written so.
        ArtefactError: The program's logits differ.
    """
    if not (formats.onnx or formats.torch_export):
        return
    subject = replace(subject, net=as_saved_(copy.deepcopy(subject.net)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *subject.preprocessing.input_size, generator=generator)
    if formats.onnx:
        _write_onnx(subject, folder / "model.onnx", x)
    if formats.torch_export:
        _write_program(subject, folder / "model.pt2", x)


def _write_onnx(subject: Subject, path: Path, x: Tensor) -> None:
    import onnxruntime

    program = _exported(subject, x, "--onnx")
    with _quiet():
        written = torch.onnx.export(program, (), dynamo=True, input_names=["images"])
        assert written is not None
        written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]
    for images in (x, x[:1]):
        (logits,) = session.run(None, {name: images.numpy()})
        _compare(subject, images, torch.as_tensor(logits), path.name)


def _write_program(subject: Subject, path: Path, x: Tensor) -> None:
    torch.export.save(_exported(subject, x, "--torch-export"), path)
    again = torch.export.load(path).module()
    for images in (x, x[:1]):
        _compare(subject, images, again(images), path.name)


def _exported(subject: Subject, x: Tensor, flag: str) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(subject.net, (x,), dynamic_shapes=({0: Dim.AUTO},))
    except Exception as error:  # whatever a network's code makes the tracer raise
        raise IncompatibleError(
            f"{subject.architecture}: cannot be traced ({str(error).splitlines()[0]}); export it "
            f"without {flag}"
        ) from error


@torch.no_grad()
def _compare(subject: Subject, x: Tensor, found: Tensor, name: str) -> None:
    wanted = subject.net(x)
    same = found.shape == wanted.shape
    difference = float((found - wanted).abs().max() / wanted.abs().max()) if same else float("inf")
    if not difference <= _TOLERANCE:
        raise ArtefactError(
            f"{name}: its logits differ from the network's by {difference:.2g} relative, expected "
            f"at most {_TOLERANCE:g}; nothing was written, please report this"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say about themselves off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
