"""Run a benchmark: data, vanilla network, every operation; one result file for each."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surgeon.benchmarks.files import (
    VERSION,
    read_result,
    result_path,
    setting_json,
    setting_name,
    write_result,
)
from surgeon.benchmarks.guessed import check_discovery, guessed
from surgeon.benchmarks.measured import measured
from surgeon.benchmarks.owner import content_hash, read_marker, without_repeats, write_owner
from surgeon.benchmarks.protocol import BenchSet, Setting
from surgeon.benchmarks.sets import SETS
from surgeon.benchmarks.vanilla import cached, fingerprint
from surgeon.checkpoint import file_sha256
from surgeon.data import Data, read_data
from surgeon.errors import ArtefactError, OptionError
from surgeon.export import as_json
from surgeon.loading import load
from surgeon.measure import Measures
from surgeon.methods import DFR, FFW, METHODS, VCBA, ClusterFix, Leace, Method
from surgeon.methods.base import Progress
from surgeon.methods.training import Training
from surgeon.operate import Announce, config_of
from surgeon.subject import Subject, find_device


def _seeded(name: str, seed: int) -> Method:
    settings = {} if name == Leace.name else {"seed": seed}  # a closed form
    return METHODS[name](**settings)


OPERATIONS: dict[str, Callable[[int], Method]] = {
    "ffw": lambda seed: FFW(seed=seed),
    "ffw-structured": lambda seed: FFW(mode="structured", seed=seed),
    "ffw-refit": lambda seed: FFW(refit_head=True, seed=seed),
    "ffw-paper": lambda seed: FFW(recipe="paper", seed=seed),
    **{name: partial(_seeded, name) for name in METHODS if name != FFW.name},
    "dfr-paper": lambda seed: DFR(recipe="paper", seed=seed),
    # BPA's weights: the loss of the target alone.
    "clusterfix-bpa": lambda seed: ClusterFix(gamma=0.0, seed=seed),
    "vcba-misaligned": lambda seed: VCBA(information="misaligned", seed=seed),
    "vcba-weights": lambda seed: VCBA(information="none", seed=seed),
    "vcba-all": lambda seed: VCBA(information="all", seed=seed),
    "vcba-paper": lambda seed: VCBA(recipe="paper", from_scratch=True, seed=seed),
}
"""Name to what makes the method of a seed. `ffw` brings all baselines and controls along."""


@dataclass(frozen=True, eq=False)
class _Made:
    """A setting made ready: the owner's folder, and what all of its results say alike."""

    folder: Path
    bench: BenchSet
    common: Mapping[str, Any]
    seconds: Mapping[str, float]


def run(
    setting: Setting,
    out: Path,
    operations: Mapping[str, Method],
    *,
    device: str = "cpu",
    epochs: int | None = None,
    brief: bool = False,
    mlp: bool = True,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> list[dict[str, Any]]:
    """Measure operations in one setting, each with a result file, written once it is finished.

    What an earlier run left in the folder is used again: the vanilla network of equal training
    rows, and each result of equal setting, configuration, network and labelled rows.

    Args:
        setting: The cell.
        out: Folder for `vanilla`, `results` and the owner's folder of the setting.
        operations: Name to method. `ffw` is measured beside all baselines and controls; another
            one is measured beside the vanilla network alone.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        epochs: Cap on the epochs of the vanilla network, of every search and of fine-tuning, for
            trials; results say so and have names of their own.
        brief: Of baselines and controls measure the vanilla network and last-layer retraining
            alone; a result that holds more serves as well.
        mlp: Run the MLP probes, which take most of the time; a result that holds them serves
            without as well.
        progress: Takes one record per epoch.
        announce: Takes one line per stage.

    Returns:
        The results, in the order of the operations.

    Raises:
        OptionError: The setting cannot be.
        SurgeonError: Data are missing, or a folder cannot be written.
    """
    _check(setting, epochs)
    _check_folder(out)
    say = announce or (lambda _: None)
    device = str(find_device(device))
    capped = {name: _cap(method, epochs) for name, method in operations.items()}
    made = _make(setting, out, device, epochs, progress, say)
    loaded: _Loaded | None = None
    results = []
    for name, method in capped.items():
        path = result_path(out, setting, name, epochs)
        stamp = {"operation": name, "config": as_json(config_of(method)), **made.common}
        known = read_result(path) if path.is_file() else {}
        less = {"brief": brief, "no_mlp": not mlp}
        enough = all(asked or not known.get(key) for key, asked in less.items())
        if enough and all(known.get(key) == value for key, value in stamp.items()):
            say(f"{name}: {path} is used again, of commit {known['git'] or 'unknown'}")
        else:
            loaded = loaded or _load(made, setting, device)
            say(f"{name}: fitting and measuring")
            measures = _measures(setting, epochs, brief, mlp)
            found = measured(
                loaded.subject, loaded.data, made.bench, name, method, measures, progress, say
            )
            found["seconds"] = {**made.seconds, **found["seconds"]}
            facts = {**less, "guess": loaded.guess}
            known = as_json({**stamp, **found, **{k: v for k, v in facts.items() if v}})
            write_result(path, known)
        results.append(known)
    return results


def make_operations(names: Sequence[str], seed: int) -> dict[str, Method]:
    """Make the named operations.

    Args:
        names: Keys of `OPERATIONS`.
        seed: Of the methods.

    Raises:
        OptionError: A name is unknown.
    """
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise OptionError(
            f"--operation: found '{unknown[0]}', expected one of {', '.join(OPERATIONS)}"
        )
    return {name: OPERATIONS[name](seed) for name in names}


def _check(setting: Setting, epochs: int | None) -> None:
    if setting.benchmark not in SETS:
        raise OptionError(
            f"benchmark: found '{setting.benchmark}', expected one of {', '.join(SETS)}"
        )
    check_discovery(setting.discovery)
    if epochs is not None and not 1 <= epochs < math.inf:
        raise OptionError(f"--epochs: found {epochs}, expected 1 or more")


def _check_folder(out: Path) -> None:
    """Refuse, before any work, a folder that could not be written."""
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtefactError(f"{out}: {parent} is not a folder you can write to; pass another --out")


def _cap(method: Method, epochs: int | None) -> Method:
    """Lower a method's epochs; a method without any is left as it is."""
    if epochs is None or not isinstance(method, FFW | Training):
        return method
    return replace(method, epochs=min(epochs, method.settings().epochs))


def _make(
    setting: Setting,
    out: Path,
    device: str,
    epochs: int | None,
    progress: Progress | None,
    say: Announce,
) -> _Made:
    name = setting_name(setting, epochs)
    say(f"{name}: making the data")
    began = time.perf_counter()
    bench, dropped = without_repeats(SETS[setting.benchmark](setting))
    if epochs is not None:
        training = replace(bench.training, epochs=min(epochs, bench.training.epochs))
        bench = replace(bench, training=training)
    content = content_hash(bench, fingerprint(bench, setting.seed))
    data_seconds, folder = time.perf_counter() - began, out / name
    marker = read_marker(folder)
    if marker.get("sha256") != content:
        say(f"{name}: {bench.net} on {len(bench.train)} rows, {bench.training.epochs} epochs")
        vanilla = cached(bench, out, seed=setting.seed, device=device, progress=progress)
        began = time.perf_counter()
        say(f"{name}: writing {folder}")
        write_owner(folder, bench, vanilla, content)
        data_seconds += time.perf_counter() - began
        marker = read_marker(folder)
    common = {
        "version": VERSION,
        "setting": setting_json(setting, epochs),
        "source": bench.source,
        "dropped": dropped,
        "rows": {part: len(getattr(bench, part)) for part in ("train", "fit", "select", "report")},
        "training": {"net": bench.net, **asdict(bench.training)},
        "vanilla_sha256": _sha256(folder / "model.safetensors"),
        "data_sha256": content,
    }
    seconds = {"data": data_seconds, "vanilla": float(marker["vanilla_seconds"])}
    return _Made(folder, bench, as_json(common), seconds)


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be read ({error.strerror}); delete {path.parent} and run again"
        ) from error


@dataclass(frozen=True, eq=False)
class _Loaded:
    """What the operations of a setting share."""

    subject: Subject
    data: Data
    guess: Mapping[str, Any] | None
    """How a guessed bias agrees with the true one; None where the true one is used."""


def _load(made: _Made, setting: Setting, device: str) -> _Loaded:
    """Read the owner's folder as its owner would, with the defaults of `surgeon prune`.

    Report rows are grouped by all biases, those that are only watched included.
    """
    amp_dtype = torch.bfloat16 if torch.device(device).type == "cuda" else None
    subject = load(made.folder, device=device, amp_dtype=amp_dtype)
    audited = made.bench.audited
    columns = [column for column in made.bench.bias_names if column not in audited]
    labels = made.folder / "val.csv"
    data = read_data(subject, labels, bias_cols=columns, audit_cols=audited)
    groups = replace(data.report.groups, audited=())
    data = replace(data, report=replace(data.report, groups=groups))
    if setting.discovery is None:
        return _Loaded(subject, data, None)
    return _Loaded(subject, *guessed(subject, data, setting.discovery, seed=setting.seed))


def _measures(setting: Setting, epochs: int | None, brief: bool, mlp: bool) -> Measures:
    return Measures(
        with_finetune=True,
        finetune_epochs=epochs,
        mlp=mlp,
        mlp_every_row=True,
        brief=brief,
        seed=setting.seed,
    )
