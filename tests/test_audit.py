from __future__ import annotations

import json
import math

import pytest
import torch

from surgeon.audit import Alignment, audit_outputs, decide_alignment
from surgeon.data import Outputs
from surgeon.errors import OptionError
from surgeon.groups import Groups
from surgeon.metrics import wilson_interval
from surgeon.probes import Prober, ProbeScore

GROUP_KEYS = ["target", "bias", "n", "accuracy", "low", "high", "calibration_error"]
BIAS_KEYS = {
    "aligned",
    "conflicting",
    "gap",
    "gap_interval",
    "chance",
    "n",
    "leakage",
    "leakage_intervals",
    "untrusted",
}


class FakeProber:
    """Knows how often it was asked; distrusts the MLP on two features."""

    def __init__(self):
        self.asked = []

    def score(self, features, target, bias, num_classes, num_values, kind):
        self.asked.append((features.shape[1], num_values, kind))
        trusted = (features.shape[1], kind) != (2, "mlp")
        return ProbeScore(0.6, 0.5, 0.7, 1 / num_values, len(bias), trusted)


def _groups(counts=(40, 120, 20, 4), audited=False):
    """Two targets by two colours, and beside them a size of three values."""
    cell = torch.arange(4).repeat_interleave(torch.tensor(counts))
    size = torch.arange(len(cell)) % 3
    names = (("red", "blue"), ("s", "m", "l"))
    return Groups(
        target=cell // 2,
        biases=torch.stack([cell % 2, size], dim=1)[:, : 1 + audited],
        target_names=("cat", "dog"),
        columns=("colour", "size")[: 1 + audited],
        value_names=names[: 1 + audited],
        audited=("size",) if audited else (),
    )


def _outputs(groups, correct, confidence=2.0):
    predicted = torch.where(correct, groups.target, 1 - groups.target)
    logits = confidence * torch.nn.functional.one_hot(predicted, 2).float()
    return Outputs(features=torch.randn(len(groups), 5), logits=logits)


def _correct(groups, wrong):
    """The first `wrong[g]` rows of each group are wrong."""
    correct = torch.ones(len(groups)).bool()
    for g, n in enumerate(wrong):
        correct[(groups.index == g).nonzero().flatten()[:n]] = False
    return correct


RED_CAT_BLUE_DOG = Alignment((torch.tensor([0, 1]),), ("given",))


def _audit(groups, correct, alignment=RED_CAT_BLUE_DOG, prober=None, **options):
    return audit_outputs(
        _outputs(groups, correct), groups, alignment=alignment, prober=prober, **options
    )


def test_figures_equal_hand_counts():
    groups = _groups()
    correct = _correct(groups, (4, 60, 15, 4))
    train_counts = torch.tensor([30, 0, 10, 0])
    data = _audit(groups, correct, train_counts=train_counts).to_json()
    assert data["n"] == 184
    assert data["average_accuracy"] == pytest.approx(101 / 184)
    assert data["balanced_accuracy"] == pytest.approx((0.9 + 0.5 + 0.25 + 0) / 4)
    assert data["reweighted_accuracy"] == pytest.approx((3 * 0.9 + 0.25) / 4)
    # Four rows are too few to be the worst group.
    assert data["worst_group_accuracy"] == pytest.approx(0.25)
    assert data["worst_group"] == {"target": "dog", "bias": {"colour": "red"}}
    assert [row["n"] for row in data["groups"]] == [40, 120, 20, 4]
    assert [row["accuracy"] for row in data["groups"]] == pytest.approx([0.9, 0.5, 0.25, 0])
    low, high = wilson_interval(torch.tensor(60), torch.tensor(120))
    assert (data["groups"][1]["low"], data["groups"][1]["high"]) == (float(low), float(high))
    sigmoid = 1 / (1 + math.exp(-2))
    errors = [row["calibration_error"] for row in data["groups"]]
    assert errors == [None, pytest.approx(sigmoid - 0.5), None, None]
    colour = data["biases"]["colour"]
    assert colour["aligned"] == pytest.approx(36 / 44)
    assert colour["conflicting"] == pytest.approx(65 / 140)
    assert colour["gap"] == pytest.approx(36 / 44 - 65 / 140)
    low, high = colour["gap_interval"]
    # Aligned: 36 of 40 drawn and 4 surely wrong; conflicting: 60 of 120 and 5 of 20.
    spread = math.hypot(math.sqrt(3.6) / 44, math.sqrt(30 + 3.75) / 140)
    assert (high - low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)
    assert (high + low) / 2 == pytest.approx(colour["gap"], abs=spread / 4)
    for name, (low, high) in data["intervals"].items():
        assert low < data[name] < high


def test_rows_in_any_order_give_the_same_audit():
    groups = _groups(audited=True)
    correct = _correct(groups, (4, 60, 15, 4))
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    alignment = Alignment((torch.tensor([0, 1]), torch.tensor([-1, 0, 1])), ("given", "model"))
    plain = _audit(groups, correct, alignment)
    shuffled = _audit(groups.take(order), correct[order], alignment)
    first, second = plain.to_json(), shuffled.to_json()
    ours, theirs = (x["groups"][1].pop("calibration_error") for x in (first, second))
    assert ours == pytest.approx(theirs)
    assert first == second
    assert torch.equal(plain.correct[order], shuffled.correct)


def test_an_empty_group_is_shown_and_counts_nowhere():
    groups = _groups((40, 120, 20, 0))
    data = _audit(groups, _correct(groups, (4, 60, 15, 0))).to_json()
    assert data["groups"][3] == {
        "target": "dog",
        "bias": {"colour": "blue"},
        "n": 0,
        "accuracy": None,
        "low": None,
        "high": None,
        "calibration_error": None,
    }
    assert data["balanced_accuracy"] == pytest.approx((0.9 + 0.5 + 0.25) / 3)
    assert data["biases"]["colour"]["aligned"] == pytest.approx(0.9)
    assert _audit(groups, _correct(groups, (40, 0, 0, 0)), min_group=0).worst_group == 0


def test_without_an_eligible_group_there_is_no_worst_one():
    groups = _groups()
    data = _audit(groups, _correct(groups, (4, 60, 15, 4)), min_group=121).to_json()
    assert data["worst_group"] is data["worst_group_accuracy"] is None
    assert data["intervals"]["worst_group_accuracy"] is None
    assert data["reweighted_accuracy"] is data["intervals"]["reweighted_accuracy"] is None


@pytest.mark.parametrize(
    ("pull", "aligned", "conflicting"),
    [([-1, -1], None, None), ([0, -1], 36 / 40, 5 / 20), ([-1, 1], 0, 60 / 120)],
)
def test_a_value_that_pulls_nowhere_is_neither_aligned_nor_conflicting(pull, aligned, conflicting):
    groups = _groups()
    alignment = Alignment((torch.tensor(pull),), ("model",))
    row = _audit(groups, _correct(groups, (4, 60, 15, 4)), alignment).to_json()["biases"]["colour"]
    assert row["aligned"] == (aligned and pytest.approx(aligned))
    assert row["conflicting"] == (conflicting and pytest.approx(conflicting))
    assert (row["gap"] is None) == (row["gap_interval"] is None) == (aligned is None)


def test_audited_columns_have_a_table_but_make_no_groups():
    groups = _groups(audited=True)
    alignment = Alignment((torch.tensor([0, 1]), torch.tensor([0, 1, -1])), ("given", "model"))
    prober = FakeProber()
    audit = _audit(groups, _correct(groups, (4, 60, 15, 4)), alignment, prober, mlp=False)
    data = audit.to_json()
    assert len(data["groups"]) == 4
    assert list(data["biases"]) == ["colour", "size"]
    assert data["biases"]["size"]["chance"] == pytest.approx(1 / 3)
    assert data["biases"]["size"]["aligned"] is not None
    assert prober.asked == [(5, 2, "linear"), (2, 2, "linear"), (5, 3, "linear"), (2, 3, "linear")]
    # The verdict asks about what the operation is meant to remove.
    assert len(audit.gap_intervals) == 1
    assert audit.logit_leaks == ((0.5, 0.7, 0.5),)


@pytest.mark.parametrize("mlp", [True, False])
@pytest.mark.parametrize("erased", [True, False])
def test_leakage_names_its_places_and_marks_what_is_not_trusted(erased, mlp):
    groups = _groups()
    head_input = torch.randn(len(groups), 7) if erased else None
    audit = _audit(
        groups,
        _correct(groups, (4, 60, 15, 4)),
        prober=FakeProber(),
        head_input=head_input,
        mlp=mlp,
    )
    row = audit.to_json()["biases"]["colour"]
    assert set(row) == BIAS_KEYS
    kinds = {"linear": 0.6, "mlp": 0.6 if mlp else None}
    spans = {"linear": [0.5, 0.7], "mlp": [0.5, 0.7] if mlp else None}
    assert row["leakage"] == {
        "bottleneck": kinds,
        "head_input": kinds if erased else None,
        "logits": kinds,
    }
    assert row["leakage_intervals"]["logits"] == spans
    assert row["leakage_intervals"]["head_input"] == (spans if erased else None)
    assert row["untrusted"] == (["logits/mlp"] if mlp else [])
    assert row["n"] == 184
    assert len(audit.logit_leaks) == 1 + mlp


def test_json_is_the_agreed_schema_and_holds_no_nan():
    groups = _groups((12, 30, 0, 3))
    alignment = Alignment((torch.tensor([-1, -1]),), ("none",))
    audit = _audit(groups, _correct(groups, (4, 0, 0, 3)), alignment)
    data = json.loads(json.dumps(audit.to_json(), allow_nan=False))
    assert list(data) == [
        "n",
        "average_accuracy",
        "balanced_accuracy",
        "reweighted_accuracy",
        "worst_group_accuracy",
        "worst_group",
        "intervals",
        "groups",
        "biases",
    ]
    assert [list(row) for row in data["groups"]] == [GROUP_KEYS] * 4
    assert set(data["biases"]["colour"]) == BIAS_KEYS
    assert data["biases"]["colour"]["leakage"] is None
    assert audit.logit_leaks == ()


def test_a_real_prober_reads_the_bias_where_it_is():
    groups = _groups((40, 40, 40, 40))
    outputs = _outputs(groups, torch.ones(160).bool())
    outputs.features[:, 0] = groups.biases[:, 0] * 9.0
    audit = audit_outputs(
        outputs, groups, alignment=RED_CAT_BLUE_DOG, prober=Prober(seed=0), mlp=False
    )
    leakage = audit.to_json()["biases"]["colour"]["leakage"]
    assert leakage["bottleneck"]["linear"] > 0.98
    assert leakage["logits"]["linear"] == pytest.approx(0.5, abs=0.1)


def test_alignment_comes_from_the_model_unless_given():
    groups = _groups((60, 60, 60, 60), audited=True)
    towards_colour = torch.nn.functional.one_hot(groups.biases[:, 0], 2).float()
    alignment = decide_alignment(towards_colour, groups)
    assert [pull.tolist() for pull in alignment.pulls] == [[0, 1], [-1, -1, -1]]
    assert alignment.source == ("model", "none")
    given = {"colour": {"blue": "cat"}}
    alignment = decide_alignment(towards_colour, groups, given)
    assert alignment.pulls[0].tolist() == [-1, 0]
    assert alignment.source == ("given", "none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hue": {"red": "cat"}}, r"bias column 'hue' is not among \{colour\}"),
        ({"colour": {"pink": "cat"}}, r"value of colour 'pink' is not among \{red, blue\}"),
        ({"colour": {"red": "cow"}}, r"target 'cow' is not among \{cat, dog\}"),
    ],
)
def test_unknown_names_in_a_given_alignment_are_refused_with_the_choices(given, message):
    groups = _groups()
    with pytest.raises(OptionError, match=message):
        decide_alignment(torch.zeros(len(groups), 2), groups, given)


def test_all_unknown_names_are_reported_together():
    groups = _groups()
    with pytest.raises(OptionError, match="pink") as caught:
        decide_alignment(torch.zeros(len(groups), 2), groups, {"colour": {"pink": "cow"}, "x": {}})
    assert len(caught.value.details) == 3
