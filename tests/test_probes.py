from __future__ import annotations

import math

import pytest
import torch

from surgeon import probes
from surgeon.probes import Prober

KINDS = ("linear", "mlp")


def _labels(n, classes=2, values=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (n,), generator=generator)
    return generator, target, torch.randint(0, values, (n,), generator=generator)


def _read(features, target, bias, kind, classes=2, values=2, seed=0):
    return Prober(seed=seed).score(features, target, bias, classes, values, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_bias_is_read(kind):
    generator, target, bias = _labels(300, values=3)
    features = torch.randn(300, 10, generator=generator)
    features[:, :3] += 4 * torch.eye(3)[bias]
    score = _read(features, target, bias, kind, values=3)
    assert score.accuracy > 0.93
    assert score.low < score.accuracy <= score.high
    assert (score.chance, score.n, score.trusted) == (pytest.approx(1 / 3), 300, True)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_wider_than_the_rows_are_many_reads_chance(kind):
    generator, target, bias = _labels(150)
    features = torch.randn(150, 400, generator=generator)
    score = _read(features, target, bias, kind)
    assert score.low < 0.5 < score.high
    assert 0.1 < score.high - score.low < 0.25


def test_noise_reads_chance_on_average():
    reads = []
    for seed in range(20):
        generator, target, bias = _labels(120, seed=seed)
        reads.append(_read(torch.randn(120, 5, generator=generator), target, bias, "linear"))
    assert sum(r.accuracy for r in reads) / 20 == pytest.approx(0.5, abs=0.03)
    assert sum(r.low <= 0.5 <= r.high for r in reads) >= 16


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_target_alone_tells_is_not_leakage(kind):
    generator, target, _ = _labels(400)
    # Nine in ten rows carry the bias value of their target: 90 % is read, and none of it counts.
    bias = torch.where(torch.rand(400, generator=generator) < 0.9, target, 1 - target)
    features = torch.randn(400, 3, generator=generator) + 6 * target[:, None]
    score = _read(features, target, bias, kind)
    assert score.accuracy == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_rare_cells_weigh_as_much_as_common_ones(kind):
    generator, target, _ = _labels(800)
    bias = torch.where(torch.rand(800, generator=generator) < 0.9, target, 1 - target)
    features = torch.randn(800, 2, generator=generator)
    features += torch.stack([2 * bias, 20 * target], dim=1)
    # Two deviations apart, 84 % can be read; a probe that leans on the target's odds reads 72 %.
    assert _read(features, target, bias, kind).accuracy == pytest.approx(0.84, abs=0.06)


def test_only_the_mlp_reads_what_is_not_linear():
    generator, target, bias = _labels(800)
    signs = torch.randint(0, 2, (800,), generator=generator)
    corner = torch.stack([signs, (signs + bias) % 2], dim=1) * 6.0
    features = corner + torch.randn(800, 2, generator=generator)
    assert _read(features, target, bias, "mlp").accuracy > 0.95
    assert _read(features, target, bias, "linear").accuracy == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_on_the_arguments_and_the_seed_alone(kind):
    generator, target, bias = _labels(80)
    features = torch.randn(80, 4, generator=generator) + bias[:, None]
    torch.manual_seed(1)
    first = _read(features, target, bias, kind)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert _read(features.clone(), target, bias, kind) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert _read(features, target, bias, kind, seed=1) != first


def test_equal_features_are_probed_once_and_the_plant_once_for_equal_labels(monkeypatch):
    generator, target, bias = _labels(60)
    features = torch.randn(60, 3, generator=generator)
    runs = []
    fit = probes._cross_fit
    monkeypatch.setattr(
        probes, "_cross_fit", lambda task, kind: runs.append(kind) or fit(task, kind)
    )
    prober = Prober(seed=0)
    first = prober.score(features, target, bias, 2, 2, "linear")
    assert prober.score(features.clone(), target, bias, 2, 2, "linear") is first
    assert len(runs) == 2
    prober.score(features + 1, target, bias, 2, 2, "linear")
    assert len(runs) == 3
    prober.score(features, target, 1 - bias, 2, 2, "linear")
    assert len(runs) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_shift_of_a_feature_do_not_matter(kind):
    generator, target, bias = _labels(200)
    features = torch.randn(200, 4, generator=generator) + bias[:, None]
    moved = features * torch.tensor([1, 1e-3, 1e3, 5]) + torch.tensor([0, 1, -50, 3])
    plain, scaled = (_read(x, target, bias, kind).accuracy for x in (features, moved))
    assert plain == pytest.approx(scaled, abs=0.02)
    assert plain > 0.7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 3])
def test_constant_features_read_chance_and_one_feature_is_enough(kind, width):
    _, target, bias = _labels(100)
    constant = torch.full((100, width), 0.1)
    score = _read(constant, target, bias, kind)
    assert score.accuracy == pytest.approx(0.5, abs=0.15)
    told = torch.cat([constant[:, 1:], bias[:, None].float()], dim=1)
    score = _read(told, target, bias, kind)
    assert score.accuracy == 1
    assert score.trusted


@pytest.mark.parametrize("kind", KINDS)
def test_rare_cells_and_absent_values_do_not_crash(kind):
    generator = torch.Generator().manual_seed(0)
    bias = torch.tensor([0] * 30 + [1] * 26 + [2] * 1 + [3] * 3)
    target = torch.arange(60) % 3
    features = torch.randn(60, 4, generator=generator)
    score = _read(features, target, bias, kind, classes=4, values=6)
    assert 0 <= score.low <= score.accuracy <= score.high <= 1
    few = torch.tensor([0] * 9 + [1])
    score = _read(features[:10], torch.zeros(10).long(), few, kind)
    assert 0 <= score.accuracy <= 1


@pytest.mark.parametrize("case", ["nan", "one value", "few rows"])
def test_what_cannot_be_read_is_nan_and_not_trusted(case):
    generator, target, bias = _labels(40)
    features = torch.randn(40, 2, generator=generator)
    if case == "nan":
        features[3, 1] = math.nan
    if case == "one value":
        bias = torch.zeros_like(bias)
    rows = slice(0, 9) if case == "few rows" else slice(None)
    score = _read(features[rows], target[rows], bias[rows], "linear")
    assert math.isnan(score.accuracy)
    assert math.isnan(score.low)
    assert not score.trusted


def test_a_probe_with_too_few_rows_for_the_dimension_is_not_trusted():
    generator, target, bias = _labels(14)
    assert not _read(torch.randn(14, 900, generator=generator), target, bias, "linear").trusted


@pytest.mark.parametrize(("dim", "values"), [(1, 4), (2, 10), (10, 10)])
def test_the_plant_can_be_read_in_few_dimensions(dim, values):
    generator, target, bias = _labels(600, values=values)
    features = torch.randn(600, dim, generator=generator)
    assert _read(features, target, bias, "linear", values=values).trusted


def test_the_plant_takes_away_what_the_features_tell():
    _, target, bias = _labels(200)
    task = probes._Task(
        bias[:, None].float().repeat(1, 2),
        bias,
        target * 2 + bias,
        num_values=2,
        num_cells=4,
        seed=0,
    )
    places = probes._planted(task).features
    centre = torch.stack([places[bias == b].mean(0) for b in range(2)])
    # The shuffled rows differ by chance alone; what is left between the values is the plant.
    assert float((centre[0] - centre[1]).norm()) == pytest.approx(4 * math.sqrt(2), abs=0.5)


def test_folds_are_disjoint_even_and_stratified():
    cell = torch.tensor([0] * 52 + [1] * 23 + [2] * 3)
    part = probes._stratified_parts(cell, 5, torch.Generator().manual_seed(0))
    for c, n in ((0, 52), (1, 23), (2, 3)):
        counts = torch.bincount(part[cell == c], minlength=5)
        assert counts.sum() == n
        assert counts.max() - counts.min() <= 1
    assert torch.bincount(part).max() - torch.bincount(part).min() <= 1
