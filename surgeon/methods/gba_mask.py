"""GBA's mask without its training: drop the features whose gradients give a bias away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from surgeon.bias_head import BiasHead
from surgeon.data import Data, extract
from surgeon.edit import Edit
from surgeon.methods.base import Method, Progress, feature_scaling, new_edit
from surgeon.options import check_share
from surgeon.subject import Subject


@dataclass(frozen=True, kw_only=True)
class GBAMask(Method):
    """Drop bottleneck features for good, by the gradients of a bias head over the fit rows.

    A feature's score is the mean, over the rows, of how strongly GBA's mask would strike it there:
    the gradient of the winning bias logit, its sign turned where the head is wrong, its positive
    part, times the feature's deviation. The features of greatest score are dropped, for several
    biases by the mean of their scores, each relative to its own sum. The mask is folded into the
    head: a dropped feature counts as its mean.

    Source:
        GBA (AAAI 2022), eq. 4 to 6, a mask per image while a network is trained. Ours is one for
        all images, by the size of gradients and not by their sign alone, and trains nothing.
    """

    name: ClassVar[str] = "gba-mask"

    sparsity: float = 0.5
    """Share of the features to drop."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)

    def fit(self, subject: Subject, data: Data, *, progress: Progress | None = None) -> Edit:
        """Fit a linear head per bias on features of the fit rows, and score the features.

        Raises:
            IncompatibleError: The head is not linear.
        """
        subject.head.check_linear(self.name)
        features = extract(subject, data.fit).features
        groups, (mean, scale) = data.fit.groups, feature_scaling(features)
        # A linear head on standardised features: its gradients are on the scale of deviations.
        scaled = (features - mean) / scale
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.zeros(features.shape[1])
        for k in groups.fitted:
            score = _strikes(scaled, groups.biases[:, k], groups.num_values(k), generator)
            scores += score / score.sum().clamp_min(torch.finfo(score.dtype).tiny)
        dropped = scores.argsort(descending=True, stable=True)[: round(self.sparsity * len(scores))]
        keep = torch.ones(len(scores), dtype=torch.bool)
        keep[dropped] = False
        head, own = subject.head, {n: t.cpu() for n, t in subject.head_tensors.items()}
        weight, old = head.weight(own), head.bias_term(own)
        masks = head.split(keep.expand(len(weight), -1).clone(), own)
        updates = {}
        if old is not None:
            updates = head.replaced(weight, old + weight[:, ~keep] @ mean[~keep], own)
            updates = {name: value for name, value in updates.items() if name not in masks}
        return new_edit(subject, self.name, masks=masks, updates=updates)


def _strikes(x: Tensor, bias: Tensor, num_values: int, generator: torch.Generator) -> Tensor:
    """Return how strongly the masks of all rows strike each feature.

    Args:
        x: `[N, D]` standardised features.
        bias: `[N]` int64.
        num_values: Values of the bias.
        generator: Orders the rows while the head is fitted.

    Returns:
        `[D]`, 0 or more.
    """
    head = BiasHead(x, num_values)
    head.fit(x, bias, generator=generator)
    found = head(x).argmax(1)
    signs = torch.where(found == bias, 1.0, -1.0)
    # The gradient of a linear head's logit is its row; the rows sum to zero, as they start there.
    rows = one_hot(found, num_values).float()
    right, wrong = (
        rows[signs == sign].sum(0) @ (sign * head.weight).relu() for sign in (1.0, -1.0)
    )
    return (right + wrong) / len(x)
