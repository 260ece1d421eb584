"""An average of weights over the last steps of a training, steadier than its last step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Follow tensors with an exponential average.

    Args:
        tensors: What is followed, as stepped in place; the average starts as a copy.
        steps: Steps after which a value counts 1 / e as much; below 1, the average is the last.
    """

    def __init__(self, tensors: Mapping[str, Tensor], steps: float) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._followed = [tensor.detach() for tensor in tensors.values()]
        self._update = get_ema_multi_avg_fn(1 - 1 / max(steps, 1))

    def follow(self) -> None:
        """Take in a step."""
        self._update(list(self.tensors.values()), self._followed, None)
