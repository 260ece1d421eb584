"""Data sets as they are published, for owners of a copy: each becomes a file of labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from surgeon.benchmarks.layouts.base import LabelledImage, PublishedSet, write_label_csv
from surgeon.benchmarks.layouts.celeba import read_celeba
from surgeon.benchmarks.layouts.imdb import read_imdb
from surgeon.benchmarks.layouts.waterbirds import read_waterbirds

LAYOUTS: dict[str, Callable[[Path], PublishedSet]] = {
    "celeba": read_celeba,
    "celeba-makeup": partial(read_celeba, target="Heavy_Makeup"),
    "waterbirds": read_waterbirds,
    "waterbirds-place": partial(read_waterbirds, target="place"),
    "imdb-eb1-eb2": partial(read_imdb, train="eb1", test="eb2"),
    "imdb-eb1-test": partial(read_imdb, train="eb1", test="test"),
    "imdb-eb2-eb1": partial(read_imdb, train="eb2", test="eb1"),
    "imdb-eb2-test": partial(read_imdb, train="eb2", test="test"),
}
"""Name to reader; of IMDB the biased rows to train on and the rows of the report."""

__all__ = [
    "LAYOUTS",
    "LabelledImage",
    "PublishedSet",
    "read_celeba",
    "read_imdb",
    "read_waterbirds",
    "write_label_csv",
]
