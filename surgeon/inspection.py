"""What a checkpoint is, and what a mask may touch, without running any operation."""

from __future__ import annotations

from typing import Any

from surgeon.groups import Labels
from surgeon.sites import unit_sites, weight_sites
from surgeon.subject import Subject


def inspect(subject: Subject, labels: Labels | None = None) -> dict[str, Any]:
    """Describe a subject, and a label file as it would be used.

    Args:
        subject: The network.
        labels: A checked label file; images need not be decoded.

    Returns:
        A JSON document: architecture, classes, preprocessing, hash, one entry per gateable layer
        (weights for single-weight gates; units and where their gates act), groups with counts.
    """
    units = {site.name: site for site in unit_sites(subject)}
    layers = []
    for site in weight_sites(subject):
        name = site.name.removesuffix(".weight")
        gated = units.get(name)
        layers.append(
            {
                "name": name,
                "kind": type(subject.net.get_submodule(site.name.rpartition(".")[0])).__name__,
                "weights": subject.tensors()[site.name].numel(),
                "units": gated.shape[0] if gated else 0,
                "gated_at": [fold.parameter for fold in gated.folds] if gated else [],
            }
        )
    gated_weights = sum(layer["weights"] for layer in layers)
    document: dict[str, Any] = {
        "checkpoint": subject.path.name,
        "sha256": subject.sha256,
        "architecture": str(subject.architecture),
        "num_classes": subject.num_classes,
        "label_names": list(subject.label_names) if subject.label_names else None,
        "num_features": subject.num_features,
        "head": str(subject.head),
        "parameters": sum(p.numel() for p in subject.net.parameters()),
        "gateable_weights": gated_weights,
        "gateable_units": sum(layer["units"] for layer in layers),
        "preprocessing": subject.preprocessing.to_config(),
        "layers": layers,
        "notes": list(subject.notes),
    }
    if labels is not None:
        groups, counts = labels.groups, labels.groups.counts().tolist()
        named = [groups.names(g) for g in range(groups.num_groups)]
        document["groups"] = [
            {"target": target, "bias": bias, "n": n}
            for (target, bias), n in zip(named, counts, strict=True)
        ]
        document["rows"] = len(groups)
        document["notes"] += labels.notes
    return document
