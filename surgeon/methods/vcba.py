"""VCBA: reweigh the rows that go against the bias, and remove its information from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from surgeon.audit import decide_alignment
from surgeon.bias_head import BiasHead
from surgeon.data import Data, extract
from surgeon.errors import LabelError
from surgeon.groups import Groups
from surgeon.methods.training import Objective, Pass, Regime, Training
from surgeon.mutual_information import table_information
from surgeon.options import check_choice
from surgeon.subject import Subject

# Weight of the information, lambda in the paper and the same for all of its data.
_LAMBDA = 2.0


@dataclass(frozen=True, kw_only=True)
class VCBA(Training):
    """Lower a reweighted cross-entropy plus twice the information on the bias.

    A row is aligned where its bias value pulls toward its own target and misaligned where toward
    another. With rho the aligned share of the rows of a bias value, an aligned row weighs 1 / rho
    and a misaligned one 1 / (1 - rho), so that both kinds count equally; weights are scaled to
    mean 1. The information is that of the bias and what a linear head reads of it, on misaligned
    rows only. With several biases weights are multiplied and informations averaged.

    Source:
        Nahon and others, Mining bias-target alignment from Voronoi cells, ICCV 2023, eq. 5 to 8.
        The published code counts rho's aligned rows by the bias and all rows by the target, which
        can leave 0 to 1, and weighs all rows alike if it does; it learns nothing from batches
        without misaligned rows, and reads the information off a batch's one or two others. Ours
        counts both by the bias and refuses a bias value without either kind; every batch counts,
        and the joint table of the information is followed over an epoch. A value pulls where the
        network's answers say so, else toward the target it is most often seen with.
    """

    name: ClassVar[str] = "vcba"
    default: ClassVar[Regime] = Regime(balance="none")
    paper: ClassVar[Regime | None] = Regime(
        optimiser="sgd",
        lr=0.1,
        weight_decay=1e-4,
        milestones=(0.5, 0.75),
        batch_size=100,
        balance="none",
        augment=False,
    )

    information: Literal["misaligned", "all", "none"] = "misaligned"
    """Rows whose information on the bias is lowered; the others are ablations (paper, table 5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Rows are weighted already.
        check_choice("balance", self.balance, ("none",))
        check_choice("information", self.information, ("misaligned", "all", "none"))

    def new_objective(self, subject: Subject, data: Data) -> Objective:
        """Return weighted cross-entropy plus information.

        Raises:
            LabelError: All rows of a bias value are aligned, or none is.
        """
        groups, device = data.fit.groups, subject.device
        outputs = extract(subject, data.fit)
        pulls = _pulls(outputs.logits, groups)
        aligned = torch.stack(
            [pulls[k][groups.biases[:, k]] == groups.target for k in groups.fitted], 1
        )
        weights = row_weights(groups, aligned, str(data.labels.csv)).to(device)
        targets = groups.target.to(device)
        told_by = torch.ones_like(aligned) if self.information == "all" else ~aligned
        readers = [
            _Reader(outputs.features.to(device), groups, k, told_by[:, k], self.settings())
            for k in groups.fitted
        ]
        weight = 0.0 if self.information == "none" else _LAMBDA

        def loss(seen: Pass) -> tuple[Tensor, Mapping[str, Tensor]]:
            rows = seen.rows.to(device)
            each = cross_entropy(seen.logits, targets[rows], reduction="none")
            task = (weights[rows] * each).mean()
            told = torch.stack([reader(seen.features, rows) for reader in readers]).mean()
            return task + weight * told, {"task_loss": task.detach(), "bias_term": told.detach()}

        return Objective(loss, data)


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
        LabelError: All rows of a bias value are aligned, or none is; every fault is listed.
    """
    weights, faults = torch.ones(len(groups), dtype=torch.float64), []
    for k in groups.fitted:
        bias, values = groups.biases[:, k], groups.num_values(k)
        counts = torch.bincount(bias, minlength=values).double()
        rho = torch.bincount(bias[aligned[:, k]], minlength=values) / counts
        for value in ((rho == 0) | (rho == 1)).nonzero().flatten().tolist():
            kind = "aligned" if rho[value] == 1 else "misaligned"
            faults.append(
                f"{groups.columns[k]} '{groups.value_names[k][value]}': all "
                f"{int(counts[value])} fit rows are {kind} with the target it pulls toward"
            )
        weights *= torch.where(aligned[:, k], 1 / rho[bias], 1 / (1 - rho[bias]))
    if faults:
        raise LabelError(
            f"{where}: {len(faults)} bias values with one kind of rows, expected aligned and "
            "misaligned ones of each; add rows, or use another method",
            faults,
        )
    return (weights / weights.mean()).float()


class _Reader:
    """Reads one bias off the features of some rows, with a head that is trained on all."""

    def __init__(
        self, features: Tensor, groups: Groups, column: int, counted: Tensor, regime: Regime
    ) -> None:
        self.head = BiasHead(features, groups.num_values(column))
        self._biases = groups.biases[:, column].to(features.device)
        self._counted = counted.to(features.device)
        share = regime.batch_size / len(groups)
        # Of these rows in a batch, on average.
        self._expected = float(counted.sum()) * share
        # The table forgets at the pace of an epoch.
        self._memory = 1 - min(1.0, share)
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
