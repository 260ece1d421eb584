"""What the papers report, as data: beside these rows ours are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FFW = "Nahon and others, Debiasing surgeon: fantastic weights and how to find them, ECCV 2024"
_VCBA = "Nahon and others, Mining bias-target alignment from Voronoi cells, ICCV 2023"
_BCON = (
    "Hong and Yang, Unbiased classification through bias-contrastive and bias-balanced learning, "
    "NeurIPS 2021"
)
_DEBIAN = (
    "Li and others, Discover and mitigate unknown biases with debiasing alternate networks, "
    "ECCV 2022"
)
_GBA = "Kurmi and others, Gradient based activations for accurate bias-free learning, AAAI 2022"
_CSAD = (
    "Zhu and others, Learning bias-invariant representation by cross-sample mutual information "
    "minimization, ICCV 2021"
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a paper's table."""

    benchmark: str
    """Registry key."""
    method: str
    rho: float | None = None
    """Share of training rows that follow the shortcut, None where the benchmark has one only."""
    figures: Mapping[str, float]
    """Column to fraction in [0, 1]: `average`, `mean` (over aligned and conflicting groups),
    `aligned`, `conflicting`, `both conflicting`, `gap`, `pruned`, and `bias head`, the bias
    accuracy of the authors' own head, which is not a fresh probe's."""
    source: str
    as_trained: bool = True
    """Whether it knows no other rows than those that the vanilla network is trained on."""


def _biased_mnist() -> list[Published]:
    rhos = (0.99, 0.995, 0.997, 0.999)
    plain = {
        "vanilla": (_FFW, (88.46, 74.23, 46.04, 10.02)),
        "VCBA": (_VCBA, (97.7, 95.5, 92.7, 58.7)),
        "best supervised training (BCon+BBal)": (_BCON, (98.1, 97.7, 97.3, 94.0)),
    }
    ffw = {
        "FFW, unstructured": (
            (97.79, 15.7, 46.5), (97.30, 17.1, 44.6), (89.36, 27.8, 36.5), (22.29, 23.1, 43.1),
        ),
        "FFW, structured": (
            (97.63, 16.9, 45.8), (96.68, 19.0, 47.1), (92.46, 22.6, 38.4), (19.91, 17.6, 47.2),
        ),
    }  # fmt: skip
    rows = [
        _row("biased-mnist", method, source, rho, average=figure)
        for method, (source, figures) in plain.items()
        for rho, figure in zip(rhos, figures, strict=True)
    ]
    rows += [
        _row(
            "biased-mnist",
            method,
            _FFW,
            rho,
            **dict(zip(("average", "bias head", "pruned"), figures, strict=True)),
        )
        for method, table in ffw.items()
        for rho, figures in zip(rhos, table, strict=True)
    ]
    tuned = _row("biased-mnist", "VCBA, lr 0.01 in its first stage", _VCBA, 0.999, average=72.6)
    return [*rows, tuned]


def _row(
    benchmark: str, method: str, source: str, rho: float | None = None, **percent: float
) -> Published:
    return Published(
        benchmark=benchmark,
        method=method,
        rho=rho,
        figures={name: round(value / 100, 6) for name, value in percent.items()},
        source=source,
        as_trained=method == "vanilla" or source != _FFW,  # FFW is fitted on unbiased rows
    )


def _multi_color_mnist() -> list[Published]:
    table = {
        "vanilla": (_VCBA, 58.9, 7.7),
        "FFW": (_FFW, 36.4, 35.9),
        "VCBA": (_VCBA, 73.1, 24.1),
        "DebiAN": (_DEBIAN, 72.0, 16.0),
    }
    return [
        _row("multi-color-mnist", method, source, mean=mean, **{"both conflicting": both})
        for method, (source, mean, both) in table.items()
    ]


PUBLISHED: tuple[Published, ...] = (
    *_biased_mnist(),
    *_multi_color_mnist(),
    *(
        _row("corrupted-cifar10", "FFW", _FFW, rho, average=figure)
        for rho, figure in ((0.995, 51.6), (0.99, 58.3), (0.98, 58.8), (0.95, 61.5))
    ),
    _row("cifar10s", "vanilla", _GBA, 0.95, mean=88.43, gap=12.45),
    _row("cifar10s", "GBA", _GBA, 0.95, mean=92.00, gap=0.10),
    _row("colored-mnist", "vanilla", _GBA, 0.95, average=77.63),
    _row("colored-mnist", "vanilla", _GBA, 0.98, average=62.29),
    _row("colored-mnist", "GBA", _GBA, 0.95, average=87.92),
    _row("colored-mnist", "GBA", _GBA, 0.98, average=79.11),
    _row("colored-mnist-lnl", "baseline, variance 0.02", _CSAD, 1.0, average=47.6),
    _row("colored-mnist-lnl", "CSAD, variance 0.02", _CSAD, 1.0, average=94.3),
)
"""Every published row that a benchmark has a counterpart to."""

_PROTOCOLS = {
    "biased-mnist": "28 x 28 pixels, 60,000 training images and a network of 531,210 weights",
    "multi-color-mnist": "60,000 training images, with labelled and report rows from MNIST-test",
    "colored-mnist": "the paper's own split",
    "colored-mnist-lnl": "the authors' files, whose class colours stand in no paper",
    "corrupted-cifar10": "50,000 lossless training images with the authors' corruptions",
    "cifar10s": "50,000 lossless training images",
}


def caveat(benchmark: str, scale: str) -> str | None:
    """Say how far published rows may be compared with measured ones.

    Args:
        benchmark: Registry key.
        scale: `small` or `paper`.

    Returns:
        One sentence; None where nothing is published, or the protocols are the same.
    """
    if benchmark not in _PROTOCOLS:
        return None
    told = f"Published figures are on {_PROTOCOLS[benchmark]}"
    if benchmark in ("corrupted-cifar10", "cifar10s"):
        return f"{told}: not to be compared directly, least of all with the JPEG copy of CIFAR-10."
    if scale == "small" or benchmark == "colored-mnist-lnl":
        return f"{told}: not to be compared directly."
    if benchmark == "biased-mnist":
        return "FFW's paper reports on recoloured training digits, its code on MNIST-test, as here."
    return None
