"""What a reader has to be told beside the figures: one sentence each, every number measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from surgeon.audit import Audit
from surgeon.edit import Edit
from surgeon.findings import Places
from surgeon.groups import Groups
from surgeon.verdict import Verdict


def no_mask(edit: Edit) -> tuple[str, ...]:
    """Say so where a mask was looked for and none is in the edit."""
    if edit.masked:
        return ()
    return (
        "no mask: on select rows a new head alone has the smaller loss, so only the head changes",
    )


def augmented(history: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Say how the fit rows were changed while the search went on, if they were."""
    change = history[-1].get("augmentation", "none") if history else "none"
    if change == "none":
        return ()
    return (f"fit rows were {change} at random: on select rows the network does not mind that",)


def halved(history: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Say so where a training broke the network and was run again with smaller steps."""
    steps = list(dict.fromkeys(record["lr"] for record in history if "lr" in record))
    if len(steps) < 2:
        return ()
    return (
        f"trained again with steps of {' and '.join(f'{step:g}' for step in steps[1:])}: those of "
        f"{steps[0]:g} broke the network",
    )


def partly_erased(edit: Edit, groups: Groups) -> tuple[str, ...]:
    """Say so where the erasure leaves directions that do not stand out of noise."""
    if edit.erasure is None:
        return ()
    present = [int(groups.biases[:, k].unique().numel()) for k in groups.fitted]
    most = min(sum(number - 1 for number in present), len(edit.erasure.mean))
    rank = edit.erasure.left.shape[1]
    if rank >= most:
        return ()
    return (
        f"{rank} of {most} directions that could tell the bias stand out of noise in {len(groups)} "
        "fit rows, and only these are erased: more rows would show more",
    )


def bound_targets(groups: Groups) -> tuple[str, ...]:
    """Name targets that occur with one value of a bias only, where the rows hold others.

    Such a target may be told by the bias alone, and nothing in the rows can tell the two apart.
    """
    found = []
    for k in groups.fitted:
        column = groups.columns[k]
        for target, value, rows in _bound(groups.target, groups.biases[:, k]):
            name = groups.target_names[target]
            found.append(
                f"target '{name}': all {rows} fit rows have {column} "
                f"'{groups.value_names[k][value]}', so what removes {column} may remove what tells "
                f"'{name}'"
            )
    return tuple(found)


def unopposed_values(groups: Groups) -> tuple[str, ...]:
    """Name bias values that occur with one target only, where the rows hold others.

    No row shows such a value beside another target, so what it does there is not measured.
    """
    return tuple(
        f"{groups.columns[k]} '{groups.value_names[k][value]}': all {rows} fit rows have target "
        f"'{groups.target_names[target]}', so none shows that it can be something else"
        for k in groups.fitted
        for value, target, rows in _bound(groups.biases[:, k], groups.target)
    )


def _bound(values: Tensor, others: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield each value that occurs with one other only, where there are more; and its rows."""
    if int(others.unique().numel()) < 2:
        return
    for value in values.unique().tolist():
        beside = others[values == value]
        if int(beside.unique().numel()) == 1:
            yield value, int(beside[0]), len(beside)


def cost(vanilla: Audit, edited: Audit, verdict: Verdict) -> tuple[str, ...]:
    """Say what accuracy was paid for which leakage, where the balanced accuracy fell for sure."""
    if not verdict.balanced.below:
        return ()
    fell = f"{100 * vanilla.balanced_accuracy:.1f} to {100 * edited.balanced_accuracy:.1f} %"
    sentences = []
    for before, after in zip(vanilla.biases, edited.biases, strict=True):
        old, new = _logits(before.leakage), _logits(after.leakage)
        if before.fitted and old is not None and new is not None:
            sentences.append(
                f"a trade: balanced accuracy went from {fell}, and the linear leakage of "
                f"'{before.column}' from the logits from {100 * old:.1f} to {100 * new:.1f} % "
                f"(chance {100 * before.chance:.1f}); --sweep gamma=... shows the way between"
            )
    return tuple(sentences)


def _logits(leakage: Places | None) -> float | None:
    kinds = leakage["logits"] if leakage else None
    score = kinds["linear"] if kinds else None
    return None if score is None else score.accuracy
