"""Small classifiers of equal shape, one for each fold, trained together as one batch.

A default audit spends most of its time here, so the gradients are written out and the products
are taken in bfloat16 where the processor has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

_RATE, _BATCH, _EPOCHS, _PATIENCE, _WIDTH = 1e-3, 256, 200, 20, 256
_SAME = 1e-9
# Products with few columns are several times slower than with sixteen.
_COLUMNS = 16
_CONFIGURATIONS = ((1, 1e-4), (1, 1e-2), (2, 1e-4), (2, 1e-2))


@dataclass(frozen=True, eq=False)
class Fold:
    """The rows of one fold and how they enter.

    Attributes:
        learn: `[L]` int64, rows to fit on.
        choose: `[M]` int64, rows that decide when to stop and which configuration counts.
        test: `[T]` int64, rows to predict.
        mean: `[D]` float32, subtracted from the features.
        deviation: `[D]` float32, > 0, divides them.
        learn_weights: `[L]` float, 1 on average.
        choose_weights: `[M]` float, sum 1.
    """

    learn: Tensor
    choose: Tensor
    test: Tensor
    mean: Tensor
    deviation: Tensor
    learn_weights: Tensor
    choose_weights: Tensor


@torch.no_grad()
def mlp_predictions(
    features: Tensor, labels: Tensor, num_values: int, folds: Sequence[Fold], *, seed: int
) -> list[Tensor]:
    """Fit networks of one and two hidden layers on every fold and predict its test rows.

    Each fold trains 1 x 256 and 2 x 256 ReLU networks with weight decay 1e-4 and 1e-2 by AdamW
    (rate 1e-3, batch 256, at most 200 epochs, patience 20); the weights with the best accuracy
    on the `choose` rows count, over epochs and configurations alike, the lower loss on a tie:
    few rows make ties common, and the first network to reach a score is seldom the best.
    The products of the fit are bfloat16 where the processor multiplies it natively; weights,
    their updates, softmax and loss are float32.

    Args:
        features: `[N, D]` float32.
        labels: `[N]` int64, values 0..B-1.
        num_values: B.
        folds: The folds; their `learn` rows may differ in number.
        seed: Of initial weights and batches; the global state is not touched.

    Returns:
        For each fold `[T]` int64.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, weights = _padded([(fold.learn, fold.learn_weights) for fold in folds])
    chosen, shares = _padded([(fold.choose, fold.choose_weights) for fold in folds])
    mean = torch.stack([fold.mean for fold in folds])[:, None]
    scale = torch.stack([1 / fold.deviation for fold in folds])[:, None]
    dtype = _product_dtype()
    choose_inputs = ((features[chosen] - mean) * scale).to(dtype)
    stacks = [
        _Stack(features.shape[1], num_values, depth, decay, len(folds), generator)
        for depth, decay in _CONFIGURATIONS
    ]
    for _ in range(_EPOCHS):
        running = [stack for stack in stacks if len(stack.alive)]
        if not running:
            break
        order = _shuffled(rows, weights, generator)
        for start in range(0, rows.shape[1], _BATCH):
            batch = order[:, start : start + _BATCH]
            taken, weight = rows.gather(1, batch), weights.gather(1, batch)
            inputs = ((features[taken] - mean) * scale).to(dtype)
            named = labels[taken]
            for stack in running:
                stack.step(inputs, named, weight)
        for stack in running:
            stack.keep_best(choose_inputs, labels[chosen], shares)
    predictions = []
    for number, fold in enumerate(folds):
        best = max(stacks, key=lambda s: (float(s.score[number]), -float(s.loss[number])))
        inputs = (features[fold.test] - fold.mean) / fold.deviation
        predictions.append(best.logits_of(number, inputs).argmax(dim=1))
    return predictions


def _padded(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack rows and weights of unequal length; the filling is row 0 with weight 0."""
    rows, weights = zip(*parts, strict=True)
    stack = torch.nn.utils.rnn.pad_sequence
    return stack(list(rows), batch_first=True), stack(
        [w.float() for w in weights], batch_first=True
    )


def _shuffled(rows: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order of every fold's rows that leaves its filling at the end."""
    keys = torch.rand(rows.shape, generator=generator)
    return keys.masked_fill(weights == 0, 2.0).argsort(dim=1)


def _product_dtype() -> torch.dtype:
    """Return bfloat16 where the processor multiplies it natively, else float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if known.get("avx512_bf16") else torch.float32


def _activations(layers: Sequence[Tensor], inputs: Tensor) -> list[Tensor]:
    """Return what enters every layer and, last, the logits."""
    found = [inputs]
    for position in range(0, len(layers), 2):
        if position:
            found[-1].relu_()
        found.append(torch.baddbmm(layers[position + 1], found[-1], layers[position]))
    return found


class _Stack:
    """Networks of one shape and one weight decay, a fold each, along the first axis."""

    def __init__(
        self,
        dim: int,
        num_values: int,
        depth: int,
        decay: float,
        folds: int,
        generator: torch.Generator,
    ) -> None:
        sizes = (dim, *[_WIDTH] * depth, num_values)
        self._layers: list[Tensor] = []
        for fan_in, fan_out in pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            for shape in ((folds, fan_in, fan_out), (folds, 1, fan_out)):
                value = (2 * torch.rand(shape, generator=generator) - 1) * bound
                self._layers.append(value)
        self._fill_columns(-num_values % _COLUMNS)
        self._best = [layer.clone() for layer in self._layers]
        self._decay = decay
        self._optimizer = self._new_optimizer()
        self._stale = torch.zeros(folds, dtype=torch.int64)
        self.alive = torch.arange(folds)
        self.score = torch.full((folds,), -1.0, dtype=torch.float64)
        self.loss = torch.full((folds,), math.inf, dtype=torch.float64)

    def _fill_columns(self, more: int) -> None:
        """Widen the output by values of probability zero, which no gradient reaches."""
        weight, bias = self._layers[-2:]
        self._layers[-2:] = pad(weight, (0, more)), pad(bias, (0, more), value=-math.inf)

    def _of_alive(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if len(self.alive) == len(self.score):
            return tensors
        return tuple(x[self.alive] for x in tensors)

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self._layers, lr=_RATE, weight_decay=self._decay, fused=True)

    def step(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Make one step on a batch of every fold; the mean is over a fold's own rows."""
        inputs, labels, weights = self._of_alive(inputs, labels, weights)
        layers = [layer.to(inputs.dtype) for layer in self._layers]
        *entering, logits = _activations(layers, inputs)
        rows = (weights > 0).sum(dim=1, keepdim=True).clamp_min(1)
        slope = logits.float().softmax(dim=2)
        slope.scatter_add_(2, labels[..., None], slope.new_tensor(-1.0).expand(*labels.shape, 1))
        slope = (slope * (weights / rows)[..., None]).to(inputs.dtype)
        for position in reversed(range(len(entering))):
            weight, bias = self._layers[2 * position : 2 * position + 2]
            weight.grad = (entering[position].mT @ slope).float()
            bias.grad = slope.sum(dim=1, keepdim=True, dtype=torch.float32)
            if position:
                slope = torch.ops.aten.threshold_backward(
                    slope @ layers[2 * position].mT, entering[position], 0
                )
        self._optimizer.step()

    def keep_best(self, inputs: Tensor, labels: Tensor, shares: Tensor) -> None:
        """Remember weights that improved, and drop folds whose patience has run out."""
        inputs, labels, shares = self._of_alive(inputs, labels, shares)
        layers = [layer.to(inputs.dtype) for layer in self._layers]
        logits = _activations(layers, inputs)[-1].float()
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (losses.view_as(shares).double() * shares).sum(dim=1)
        score = (shares.double() * (logits.argmax(dim=2) == labels)).sum(dim=1)
        gain = score - self.score[self.alive]
        higher = gain > _SAME
        better = higher | ((gain > -_SAME) & (loss < self.loss[self.alive]))
        improved = self.alive[better]
        for best, layer in zip(self._best, self._layers, strict=True):
            best[improved] = layer[better]
        self.score[improved], self.loss[improved] = score[better], loss[better]
        self._stale = torch.where(higher, 0, self._stale + 1)
        if bool((self._stale >= _PATIENCE).any()):
            self._drop(self._stale < _PATIENCE)

    def _drop(self, keep: Tensor) -> None:
        """Go on with some folds alone, with the optimiser's state of those."""
        states = [self._optimizer.state[layer] for layer in self._layers]
        self._layers = [layer[keep] for layer in self._layers]
        self.alive, self._stale = self.alive[keep], self._stale[keep]
        self._optimizer = self._new_optimizer()
        for layer, state in zip(self._layers, states, strict=True):
            self._optimizer.state[layer] = {
                name: value if name == "step" else value[keep] for name, value in state.items()
            }

    def logits_of(self, fold: int, inputs: Tensor) -> Tensor:
        """Return `[T, B or more]`, the logits of one fold's best weights, filled with -inf."""
        return _activations([layer[fold : fold + 1] for layer in self._best], inputs[None])[-1][0]
