"""The operations, by registry key."""

from __future__ import annotations

from surgeon.methods.base import Method
from surgeon.methods.clusterfix import ClusterFix
from surgeon.methods.controls import Magnitude, Random
from surgeon.methods.csad import CSAD, CSADContent, CSADStructure
from surgeon.methods.dfr import DFR
from surgeon.methods.ffw import FFW
from surgeon.methods.finetune import Finetune
from surgeon.methods.gba import GBA, GBAC, GBAN, Adversarial
from surgeon.methods.gba_mask import GBAMask
from surgeon.methods.group_dro import GroupDRO
from surgeon.methods.leace import Leace
from surgeon.methods.vcba import VCBA

METHODS: dict[str, type[Method]] = {
    "ffw": FFW,
    "gba-mask": GBAMask,
    "magnitude": Magnitude,
    "random": Random,
    "vcba": VCBA,
    "gba": GBA,
    "gba-n": GBAN,
    "gba-c": GBAC,
    "adversarial": Adversarial,
    "csad": CSAD,
    "csad-content": CSADContent,
    "csad-struct": CSADStructure,
    "clusterfix": ClusterFix,
    "finetune": Finetune,
    "group-dro": GroupDRO,
    "dfr": DFR,
    "leace": Leace,
}

__all__ = [
    "CSAD",
    "DFR",
    "FFW",
    "GBA",
    "GBAC",
    "GBAN",
    "METHODS",
    "VCBA",
    "Adversarial",
    "CSADContent",
    "CSADStructure",
    "ClusterFix",
    "Finetune",
    "GBAMask",
    "GroupDRO",
    "Leace",
    "Magnitude",
    "Method",
    "Random",
]
