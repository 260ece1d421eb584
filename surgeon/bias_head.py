"""A linear head that reads one bias off the bottleneck, trained beside the gates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

# FFW's published code: SGD with these values, and a plateau rule on the training loss.
_LR, _MOMENTUM, _DECAY = 0.1, 0.9, 1e-4
_PLATEAU, _PATIENCE, _MAX_EPOCHS, _BATCH = 1e-3, 5, 200, 100


class BiasHead:
    """Multinomial logistic regression from features `[n, D]` to one bias, by momentum SGD.

    It never sends gradients into the features: `step` and `fit` use its closed-form gradient.

    Args:
        features: `[N, D]`, vanilla bottleneck features; their device and width are used.
        num_values: Values B of the bias.

    Source:
        FFW's privacy head (ECCV 2024). Its output size there is the number of task classes; here
        it is the number of bias values.
    """

    def __init__(self, features: Tensor, num_values: int) -> None:
        width = features.shape[1]
        self.num_values = num_values
        self.weight = torch.zeros(num_values, width, device=features.device)
        self.bias_term = torch.zeros(num_values, device=features.device)
        self._velocity = (torch.zeros_like(self.weight), torch.zeros_like(self.bias_term))

    def __call__(self, features: Tensor) -> Tensor:
        """Return bias probabilities `[n, B]`, differentiable in the features."""
        return self._logits(features).softmax(1)

    def _logits(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias_term, x, self.weight.T)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take one SGD step on the cross-entropy of one batch.

        Args:
            features: `[n, D]`.
            labels: `[n]` int64, values 0..B-1.

        Returns:
            The mean cross-entropy before the step, nats, a scalar without gradient.
        """
        x = features.detach()
        truth = one_hot(labels, self.num_values).to(x)
        log_p = self._logits(x).log_softmax(1)
        error = (log_p.exp() - truth) / len(x)
        grads = (error.T @ x + _DECAY * self.weight, error.sum(0))
        for value, velocity, grad in zip(
            (self.weight, self.bias_term), self._velocity, grads, strict=True
        ):
            velocity.mul_(_MOMENTUM).add_(grad)
            value.sub_(_LR * velocity)
        return -(log_p * truth).sum(1).mean()

    def fit(self, features: Tensor, labels: Tensor, *, generator: torch.Generator) -> int:
        """Train on cached features until the loss stops falling.

        Args:
            features: `[N, D]`, on the head's device.
            labels: `[N]` int64.
            generator: Orders the rows.

        Returns:
            Epochs taken, at most 200.
        """
        best, waited = float("inf"), 0
        for epoch in range(_MAX_EPOCHS):
            order = torch.randperm(len(features), generator=generator).to(features.device)
            batches = order.tensor_split(max(1, round(len(order) / _BATCH)))
            total = sum(self.step(features[b], labels[b]) * len(b) for b in batches)
            loss = float(total) / len(order)
            if loss < best * (1 - _PLATEAU):
                best, waited = loss, 0
            else:
                waited += 1
            if waited > _PATIENCE:
                return epoch + 1
        return _MAX_EPOCHS
