from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from surgeon.data import extract
from surgeon.errors import IncompatibleError, OptionError
from surgeon.methods import DFR, Leace
from surgeon.methods.base import device_changes, select_accuracy
from surgeon.methods.refit import refit_head_on_subsets
from surgeon.metrics import group_accuracies


def oracle(toy, strength, target=None):
    rows = toy.data.fit
    counts = rows.groups.counts()[rows.groups.index].numpy()
    weights = 1 / counts * len(counts) / (1 / counts).sum()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    y = rows.groups.target if target is None else target
    x = extract(toy.subject, rows).features.double().numpy()
    return model.fit(x, y.numpy(), logisticregression__sample_weight=weights)


def predict(toy, edit):
    outputs = extract(toy.subject, toy.data.report, overrides=device_changes(toy.subject, edit))
    return outputs.logits


@pytest.mark.parametrize("strength", [1e-2, 1.0])
def test_agrees_with_scikit_learn(toy, strength):
    edit = DFR(strengths=(strength,)).fit(toy.subject, toy.data)
    assert set(edit.updates) == {"fc.weight", "fc.bias"}
    assert not any([edit.masks, edit.units, edit.buffers, edit.erasure])
    x = extract(toy.subject, toy.data.report).features.double().numpy()
    expected = oracle(toy, strength).predict_proba(x)
    found = predict(toy, edit).double().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def balanced(groups, generator):
    """As many rows of every group as the smallest has, drawn in the order of the groups."""
    members = [(groups.index == group).nonzero().flatten() for group in range(4)]
    size = min(map(len, members))
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:size]] for m in members])


def test_the_paper_s_recipe_averages_l1_fits_on_balanced_subsets(toy):
    rows, strength = toy.data.fit, 0.1
    x = extract(toy.subject, rows).features.double().numpy()
    y = rows.groups.target.numpy()
    scaler = StandardScaler().fit(x)
    generator = torch.Generator().manual_seed(3)
    weights, terms = [], []
    for _ in range(4):
        subset = balanced(rows.groups, generator)
        counts = torch.bincount(rows.groups.index[subset]).tolist()
        assert len(set(counts)) == 1
        model = LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", tol=1e-7, max_iter=9999, random_state=0
        )
        model.fit(scaler.transform(x[subset.numpy()]), y[subset.numpy()])
        weights.append(model.coef_[0] / scaler.scale_)
        terms.append(model.intercept_[0] - weights[-1] @ scaler.mean_)
    weight, bias_term = refit_head_on_subsets(toy.subject, toy.data, (strength,), refits=4, seed=3)
    apart = weight[1] - weight[0]
    np.testing.assert_allclose(apart.numpy(), np.mean(weights, 0), atol=0.02 * np.max(weights))
    term = bias_term[1] - bias_term[0]
    assert float(term) == pytest.approx(np.mean(terms), abs=0.05)
    # The penalty drops features that the default keeps.
    strong, _ = refit_head_on_subsets(toy.subject, toy.data, (0.01,), refits=1, seed=3)
    assert bool((strong == 0).any())
    assert not bool((DFR().fit(toy.subject, toy.data).updates["fc.weight"] == 0).any())


def test_the_paper_s_recipe_chooses_its_strength_and_lifts_the_worst_group(toy, worst_group):
    edit = DFR(recipe="paper").fit(toy.subject, toy.data)
    assert worst_group(toy, edit) > 0.7
    useless = DFR(recipe="paper", strengths=(1e-6, 0.3)).fit(toy.subject, toy.data)
    assert worst_group(toy, useless) > 0.7
    with pytest.raises(OptionError, match="--recipe: found 'published'"):
        DFR(recipe="published")


def test_more_classes_than_two_and_one_without_rows(toy, pico, rows_of):
    net = type(toy.subject.net)
    subject = pico(lambda: net(num_classes=5), 12)
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name in ("fit", "select", "report"):
        rows = getattr(toy.data, name)
        target = 2 * rows.groups.target + torch.randint(2, (len(rows),), generator=generator)
        parts[name] = rows.batch(torch.arange(len(rows))), target, rows.groups.biases[:, 0]
    world = replace(toy, subject=subject, data=rows_of(parts, num_classes=5))
    edit = DFR(strengths=(0.1,)).fit(subject, world.data)
    logits = predict(world, edit)
    assert logits.shape == (600, 5)
    assert torch.isfinite(logits).all()
    assert not (logits.argmax(1) == 4).any()
    sparse = predict(world, DFR(recipe="paper", strengths=(0.1,)).fit(subject, world.data))
    assert not (sparse.argmax(1) == 4).any()
    # Within a half the classes are drawn by lot.
    agreeing = sparse.argmax(1) // 2 == logits.argmax(1) // 2
    assert float(agreeing.float().mean()) > 0.8
    x = extract(subject, world.data.report).features.double().numpy()
    expected = oracle(world, 0.1).predict_proba(x)
    np.testing.assert_allclose(logits[:, :4].double().softmax(1).numpy(), expected, atol=2e-3)


def test_the_strength_is_chosen_on_select_rows(toy):
    strengths = (1e-5, 1e-1)
    each = [DFR(strengths=(s,)).fit(toy.subject, toy.data) for s in strengths]
    scores = []
    for edit in each:
        changes = device_changes(toy.subject, edit)
        logits = extract(toy.subject, toy.data.select, overrides=changes).logits
        scores.append(select_accuracy(logits, toy.data.select.groups))
    best = each[scores.index(max(scores))]
    found = DFR(strengths=strengths).fit(toy.subject, toy.data)
    assert scores[0] != scores[1]
    torch.testing.assert_close(
        found.updates["fc.weight"], best.updates["fc.weight"], rtol=1e-2, atol=1e-3
    )


def test_lifts_the_worst_group(toy):
    groups = toy.data.report.groups

    def worst(logits):
        right = logits.argmax(1) == groups.target
        return float(group_accuracies(right, groups.index, groups.num_groups).min())

    edit = DFR().fit(toy.subject, toy.data)
    assert worst(predict(toy, edit)) > worst(extract(toy.subject, toy.data.report).logits) + 0.2


@pytest.mark.parametrize("method", [DFR(), Leace()])
def test_a_head_without_additive_term_is_refused(pico, small, method):
    def bare():
        net = type(small.subject.net)()
        net.fc = torch.nn.Linear(24, 2, bias=False)
        return net

    with pytest.raises(IncompatibleError, match="no additive term"):
        method.fit(pico(bare, 12), small.data)
