"""VCBA: reweigh the rows that go against the bias, and remove its information from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from surgeon.audit import decide_alignment
from surgeon.bias_head import BiasHead
from surgeon.data import Data, extract
from surgeon.dependence import scatter, within_classes
from surgeon.errors import LabelError
from surgeon.groups import Groups
from surgeon.methods.base import gather_biases
from surgeon.methods.bias_term import Dependence
from surgeon.methods.regime import Regime
from surgeon.methods.training import Objective, Pass, Training
from surgeon.mutual_information import table_information
from surgeon.options import check_choice
from surgeon.subject import Subject

# Weight of the information, lambda in the paper and the same for all of its data.
_LAMBDA = 2.0
# Weight of what is told within classes.
_WITHIN = 0.5

Told = Callable[[Pass], Tensor]
"""Says what the features of a batch tell of the biases, to be lowered."""


@dataclass(frozen=True, kw_only=True)
class VCBA(Training):
    """Lower a reweighted cross-entropy plus what the features tell of the bias.

    A row is aligned where its bias value pulls toward its own target and misaligned where toward
    another. With rho the aligned share of the rows of a bias value, an aligned row weighs 1 / rho
    and a misaligned one 1 / (1 - rho), so that both kinds count equally; where all of a value are
    aligned they weigh 1. With several biases weights are multiplied, and what is told of them is
    averaged.

    Rows are drawn as often as they weigh. What the features tell is taken within classes, so that
    it is not the target: the dependence of bias and features less their class's mean (HSIC), and
    the features' share of variance there, which draws the few misaligned rows to the many aligned
    ones. The paper's recipe weighs rows drawn as they come, and takes twice the information of the
    bias and what a linear head reads of it, on misaligned rows only: few rows, learned by heart.

    Source:
        Nahon and others, Mining bias-target alignment from Voronoi cells, ICCV 2023, eq. 5 to 8.
        The published code counts rho's aligned rows by the bias and all rows by the target, which
        can leave 0 to 1, and weighs all rows alike if it does; it learns nothing from batches
        without misaligned rows, and reads the information off a batch's one or two others. Ours
        counts both by the bias, and `row_weights` names what cannot be weighed; every batch counts,
        and the joint table of the information is followed over an epoch. A value pulls where the
        network's answers say so, else toward the target it is most often seen with.
    """

    name: ClassVar[str] = "vcba"
    default: ClassVar[Regime] = Regime(balance="none")
    paper: ClassVar[Regime | None] = Regime(
        optimiser="sgd",
        lr=0.1,
        weight_decay=1e-4,
        warm_up=0.0,
        milestones=(0.5, 0.75),
        average=0.0,
        epochs=80,
        batch_size=100,
        epoch_rows=None,
        balance="none",
        augment=False,
    )

    information: Literal["within", "misaligned", "all", "none"] | None = None
    """What is lowered: what is told within classes (default), or what a head reads of `misaligned`
    (paper) or `all` rows, or nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Rows are weighted already.
        check_choice("balance", self.balance, ("none",))
        check_choice("information", self.information, ("within", "misaligned", "all", "none"))

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Return weighted cross-entropy plus information.

        Raises:
            LabelError: As `row_weights` says.
        """
        groups, device, paper = data.fit.groups, subject.device, self.recipe == "paper"
        outputs = extract(subject, data.fit)
        pulls = _pulls(outputs.logits, groups)
        aligned = torch.stack(
            [pulls[k][groups.biases[:, k]] == groups.target for k in groups.fitted], 1
        )
        weights = row_weights(groups, aligned, str(data.labels.csv))
        ones = torch.ones_like(weights)
        draws, counts = (ones, weights.to(device)) if paper else (weights, ones.to(device))
        targets = groups.target.to(device)
        kind = self.information or ("misaligned" if paper else "within")
        told_by = self._told(kind, subject, data, outputs.features, aligned, draws)
        strength = {"within": _WITHIN, "none": 0.0}.get(kind, _LAMBDA)

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            rows = seen.rows.to(device)
            each = cross_entropy(seen.logits, targets[rows], reduction="none")
            task, told = (counts[rows] * each).mean(), told_by(seen)
            return task + strength * told, {"task_loss": task.detach(), "bias_term": told.detach()}

        return Objective(loss, data, None if paper else weights)

    def _told(
        self,
        kind: str,
        subject: Subject,
        data: Data,
        features: Tensor,
        aligned: Tensor,
        draws: Tensor,
    ) -> Told:
        """Make what is lowered beside the cross-entropy, or for `none` only watched."""
        device = subject.device
        if kind == "within":
            targets, classes = data.fit.groups.target.to(device), subject.num_classes

            def within(seen: Pass) -> Tensor:
                target = targets[seen.rows.to(device)]
                inside = within_classes(seen.features, target, classes)
                told = Dependence()(inside, gather_biases(data.fit, seen.rows, device))
                return told + scatter(seen.features, target, classes)

            return within
        counted = torch.ones_like(aligned) if kind == "all" else ~aligned
        readers = [
            _Reader(features.to(device), data.fit.groups, k, counted[:, k], draws, self.settings())
            for k in data.fit.groups.fitted
        ]

        def read(seen: Pass) -> Tensor:
            rows = seen.rows.to(device)
            return torch.stack([reader(seen.features, rows) for reader in readers]).mean()

        return read


def _pulls(logits: Tensor, groups: Groups) -> list[Tensor]:
    """Return for each bias the target `[B]` that its values pull toward."""
    found = decide_alignment(logits, groups).pulls
    return [torch.where(found[k] >= 0, found[k], groups.usual_targets(k)) for k in groups.fitted]


def row_weights(groups: Groups, aligned: Tensor, where: str) -> Tensor:
    """Weigh aligned and misaligned rows equally within each bias value.

    Args:
        groups: Of N rows.
        aligned: `[N, K]` bool, for each fitted bias.
        where: The label file, for messages.

    Returns:
        `[N]` float32, mean 1.

    Raises:
        LabelError: No row of a bias value is aligned; or all are, and all rows of some class are
            too, which then is not seen beside it. Every such value is named.
    """
    weights, faults = torch.ones(len(groups), dtype=torch.float64), []
    for column, k in enumerate(groups.fitted):
        own, bias = aligned[:, column], groups.biases[:, k]
        rho = _shares(own, bias, groups.num_values(k))
        of_class = _shares(own, groups.target, groups.num_classes)
        faults += _named(groups, k, rho == 0, "misaligned")
        if bool((of_class == 1).any()):
            faults += _named(groups, k, rho == 1, "aligned")
        weights /= torch.where(own, rho[bias], 1 - rho[bias])
    if faults:
        raise LabelError(
            f"{where}: {len(faults)} bias values with one kind of rows, expected aligned and "
            "misaligned ones of each; add rows, or use another method",
            faults,
        )
    return (weights / weights.mean()).float()


def _named(groups: Groups, column: int, values: Tensor, kind: str) -> list[str]:
    """Name values `[B]` of a bias whose rows are of one kind."""
    counts = torch.bincount(groups.biases[:, column], minlength=len(values))
    return [
        f"{groups.columns[column]} '{groups.value_names[column][value]}': all {int(counts[value])} "
        f"fit rows are {kind} with the target it pulls toward"
        for value in values.nonzero().flatten().tolist()
    ]


def _shares(held: Tensor, value: Tensor, num: int) -> Tensor:
    """Return for each of `num` values the share `[num]` of its rows that are held."""
    counts = torch.bincount(value, minlength=num).double()
    return torch.bincount(value[held], minlength=num) / counts


class _Reader:
    """Reads one bias off the features of some rows, with a head that is trained on all."""

    def __init__(
        self,
        features: Tensor,
        groups: Groups,
        column: int,
        counted: Tensor,
        draws: Tensor,
        regime: Regime,
    ) -> None:
        self.head = BiasHead(features, groups.num_values(column))
        self._biases = groups.biases[:, column].to(features.device)
        self._counted = counted.to(features.device)
        # Of these rows in a batch, on average.
        self._expected = regime.batch_size * float(draws[counted].sum() / draws.sum())
        # The table forgets at the pace of an epoch.
        self._memory = 1 - min(1.0, regime.batch_size / regime.rows_of(len(groups)))
        self._table = torch.zeros(self.head.num_values, self.head.num_values)
        self._table = self._table.to(features.device)

    def __call__(self, features: Tensor, rows: Tensor) -> Tensor:
        """Train the head on a batch, and return the information with the batch's gradient.

        The value is that of the followed table. The gradient is that of the same table in which
        each row of the batch counts as much as in a batch of the expected size.
        """
        self.head.step(features, self._biases[rows])
        held = self._counted[rows]
        place = one_hot(self._biases[rows][held], self.head.num_values).to(features)
        batch = place.T @ self.head(features[held])
        self._table.mul_(self._memory).add_(batch.detach())
        shares = self._table / self._table.sum().clamp_min(1e-12)
        through = (batch - batch.detach()) / self._expected
        return table_information(shares + through)
