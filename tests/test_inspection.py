from __future__ import annotations

import json

import torch
from torchvision.models import VisionTransformer

from surgeon.inspection import inspect


def test_document_counts_what_can_be_gated(pico):
    subject = pico("test_convnext", 64)
    document = json.loads(json.dumps(inspect(subject), allow_nan=False))
    assert document["architecture"] == "timm:test_convnext"
    assert document["head"] == "head.fc"
    assert document["num_classes"] == 3
    assert document["sha256"] == subject.sha256
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert "head.fc" not in layers
    assert document["gateable_weights"] == sum(layer["weights"] for layer in layers.values())
    assert document["gateable_weights"] == sum(
        p.numel()
        for n, p in subject.net.named_parameters()
        if n.endswith("weight") and p.dim() >= 2 and n != "head.fc.weight"
    )
    assert document["parameters"] == sum(p.numel() for p in subject.net.parameters())
    hidden = layers["stages.1.blocks.0.mlp.fc1"]
    assert (hidden["kind"], hidden["weights"], hidden["units"]) == ("Linear", 32 * 128, 128)
    assert hidden["gated_at"] == ["stages.1.blocks.0.mlp.fc2.weight"]
    # Its units add into the channels of a residual connection.
    assert layers["stages.1.blocks.0.mlp.fc2"]["units"] == 0
    assert "groups" not in document


def test_packed_attention_weights_are_named(pico):
    subject = pico(lambda: VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=3), 16)
    layers = {layer["name"]: layer for layer in inspect(subject)["layers"]}
    (packed,) = [name for name in layers if name.endswith("in_proj_weight")]
    assert layers[packed]["kind"] == "MultiheadAttention"
    assert layers[packed]["weights"] == 3 * 16 * 16
    assert layers[packed]["units"] == 0


def test_groups_of_a_label_file(pico, toy):
    subject = pico("test_resnet", 64)
    labels = toy.data.labels
    document = inspect(subject, labels)
    assert document["rows"] == len(labels.groups)
    assert [group["n"] for group in document["groups"]] == labels.groups.counts().tolist()
    assert document["groups"][1] == {
        "target": "0",
        "bias": {"bias": "1"},
        "n": int(((labels.groups.target == 0) & (labels.groups.biases[:, 0] == 1)).sum()),
    }
    assert torch.equal(labels.groups.target, toy.data.labels.groups.target)
