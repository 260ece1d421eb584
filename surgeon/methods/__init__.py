"""The operations, by registry key."""

from __future__ import annotations

from surgeon.methods.base import Method
from surgeon.methods.controls import Magnitude, Random
from surgeon.methods.dfr import DFR
from surgeon.methods.ffw import FFW
from surgeon.methods.finetune import Finetune
from surgeon.methods.leace import Leace

METHODS: dict[str, type[Method]] = {
    "ffw": FFW,
    "magnitude": Magnitude,
    "random": Random,
    "finetune": Finetune,
    "dfr": DFR,
    "leace": Leace,
}

__all__ = ["DFR", "FFW", "METHODS", "Finetune", "Leace", "Magnitude", "Method", "Random"]
