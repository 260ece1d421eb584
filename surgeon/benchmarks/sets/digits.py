"""The demo's digits on a red or blue ground, for small networks of every family."""

from __future__ import annotations

from surgeon.benchmarks.protocol import BenchSet, Part, Setting, Training
from surgeon.benchmarks.sets.parts import fit_and_select, labelled_rows, make_part
from surgeon.demo import COLOURS, FIT, LABELS, SELECT, TRAIN, draw_digits
from surgeon.errors import OptionError

RECIPES: dict[str, tuple[int, float]] = {
    "test_efficientnet": (7, 1e-3),
    "test_resnet": (8, 5e-4),
    "test_convnext": (10, 1e-3),
    "test_vit": (30, 1e-3),
    "resnet10t": (6, 3e-4),
    "mobilenetv3_small_050": (7, 1e-3),
}
"""timm name to epochs and learning rate: long enough to learn the colour, too short for more."""


def digits(setting: Setting) -> BenchSet:
    """Take the demo's digits: is it five or more? The colour says so in 97 % of the training rows.

    900 training rows, 400 fit and 100 select rows, or fewer as `rows` says, 397 report rows without
    correlation. `rho` is 0.97 and `label_rho` 0.5 unless given. The network is one of `RECIPES`,
    test_efficientnet unless given. There is one scale.

    Raises:
        OptionError: The setting cannot be honoured.
    """
    if setting.scale != "small":
        raise OptionError(f"--scale: found '{setting.scale}', expected small, which digits has")
    net = setting.net or "test_efficientnet"
    if net not in RECIPES:
        raise OptionError(
            f"--net: found '{net}', expected one of {', '.join(RECIPES)}; only for these is it "
            "known how to train one that leans on the colour"
        )
    epochs, lr = RECIPES[net]
    count = labelled_rows(setting, FIT + SELECT, FIT + SELECT)
    drawn = draw_digits(
        setting.seed,
        rho=0.97 if setting.rho is None else setting.rho,
        label_rho=0.5 if setting.label_rho is None else setting.label_rho,
    )

    def part(start: int, end: int | None) -> Part:
        rows = slice(start, end)
        return make_part(drawn.images[rows], drawn.target[rows], drawn.bias[rows])

    fit, select = fit_and_select(part(TRAIN, TRAIN + count), SELECT / (FIT + SELECT))
    return BenchSet(
        source="scikit-learn's digits",
        target_names=LABELS,
        bias_names={"bias": tuple(COLOURS)},
        train=part(0, TRAIN),
        fit=fit,
        select=select,
        report=part(TRAIN + FIT + SELECT, None),
        net=net,
        training=Training(
            optimiser="adamw", lr=lr, epochs=epochs, batch_size=25, weight_decay=0.01
        ),
    )
