"""The report as a page: what it shows, that it stands alone, that every result fits."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from surgeon.errors import ArtefactError
from surgeon.report import write_page, write_several
from surgeon.report.charts import (
    feature_chart,
    group_chart,
    history_chart,
    layer_charts,
    leakage_charts,
    sparsity_chart,
)
from surgeon.report.svg import told_apart

PROBED = {"linear": 0.75, "mlp": 0.875}


def audit_of(accuracies, columns, probed=True):
    groups = [
        {
            **{"target": f"class {g // 4}", "n": 0 if x is None else 50},
            "bias": {column: f"value {g % 4}" for column in columns},
            **{"accuracy": x, "low": x and x * 0.9, "high": x and x + 0.1 * (1 - x)},
            "calibration_error": None,
        }
        for g, x in enumerate(accuracies)
    ]
    places = {"bottleneck": PROBED, "head_input": None, "logits": {**PROBED, "mlp": None}}
    bias = {"chance": 0.25, "leakage": places if probed else None, "gap": 0.5}
    known = [x for x in accuracies if x is not None]
    return {
        **{"n": 50 * len(known), "groups": groups},
        **{"worst_group_accuracy": min(known), "balanced_accuracy": sum(known) / len(known)},
        **{"average_accuracy": 0.875, "reweighted_accuracy": None},
        "intervals": {"worst_group_accuracy": [min(known) * 0.9, min(known) + 0.05]},
        "biases": {column: bias for column in columns},
    }


def operation(name, audit, sparsity=None):
    sparse = {"gated": sparsity, "all": sparsity, "units": None}
    return {"name": name, "audit": audit, "sparsity": sparse, "seconds": 12.5}


def document(groups=4, layers=3, columns=("bias",), word="improved", empty=(), **changes):
    before = [None if g in empty else 0.25 + 0.5 * g / groups for g in range(groups)]
    after = [None if x is None else 0.9375 for x in before]
    change = {"difference": 0.5, "low": 0.4375, "high": 0.5625}
    return {
        **{"version": 1, "seconds": 99.0, "notes": ["a note <of> the run"]},
        "base": {"sha256": "ab" * 32, "architecture": "timm:some_net", "num_classes": 3},
        "data": {"rows": 300, "fit": 180, "select": 60, "report": 60},
        "config": {"method": "ffw", "seed": 3, "settings": {"lr": 0.02, "gamma": None}},
        "operations": [
            operation("vanilla", audit_of(before, columns)),
            operation("dfr", audit_of(after, columns)),
            operation("ffw+erase", audit_of(after, columns), 0.375),
        ],
        "verdict": {
            **{"word": word, "against": "vanilla", "reason": "because", "seed": 7},
            **{"worst_group": change, "balanced": change, "aligned_by": {}},
        },
        "layers": [
            {
                **{"name": f"stage.{k}.block.conv", "kind": "Conv2d", "weights": 1000 * (k + 1)},
                **{"kept": 500 * (k + 1), "sparsity": 0.5, "units": 8, "dead_units": k % 8},
            }
            for k in range(layers)
        ],
        "history": [
            {"epoch": k, "task_loss": 1 / k, "temperature": 0.0, "sparsity": 0.01 * k}
            for k in range(1, 6)
        ],
        **changes,
    }


def folder_of(path, report, sweep=None):
    path.mkdir()
    (path / "report.json").write_text(json.dumps(report))
    record = {
        **{"command": "surgeon prune", "seed": 3, "base": report["base"]},
        **{"model_sha256": "cd" * 32, "edit_sha256": "ef" * 32},
        "environment": {"torch": "2.11", "device": "cpu"},
    }
    (path / "surgeon.json").write_text(json.dumps(record))
    if sweep:
        (path / "sweep.json").write_text(json.dumps(sweep))
    return path


class Reader(HTMLParser):
    """Collects text, addresses and the tags left open."""

    def __init__(self, html):
        super().__init__()
        self.text, self.links, self.open, self.alts = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[key] for key in ("src", "href") if key in given]
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    html = page.read_text("utf-8")
    reader = Reader(html)
    assert reader.open == []
    assert all(link.startswith("data:") for link in reader.links)
    assert all(reader.alts)
    assert "url(" not in html
    return re.sub(r"\s+", " ", " ".join(reader.text))


def test_a_page_says_what_the_report_says_and_stands_alone(tmp_path):
    text = read(write_page(folder_of(tmp_path / "out", document())))
    parts = (
        *("Improved", "Worst group +50.0 points (95 % interval 43.8 to 56.2)", "against vanilla"),
        *(
            "Note: a note <of> the run",
            "ffw+erase",
            "37.5",
            "25.0 (22.5 to 32.5)",
            "chance is 25.0",
        ),
        *("Weights of each layer", "1,000", "Fewer than 4000 report rows", "settings.lr", "0.02"),
        *("by default", "ab" * 32, "cd" * 32, "ef" * 32, "2.11", "is evidence, not proof"),
    )
    for part in parts:
        assert part in text, part
    order = ["Before and after", "Leakage", "What was removed", "The search", "How it was made"]
    places = [text.index(part) for part in [*order, "Limits"]]
    assert places == sorted(places)
    assert "Images" not in text
    assert "Features" not in text


def test_every_chart_is_a_picture_of_its_own_and_has_a_table(tmp_path):
    folder = folder_of(tmp_path / "out", document(columns=("hair colour/ä", "age")))
    page = write_page(folder).read_text("utf-8")
    pictures = {path.name: path.read_bytes() for path in (folder / "report").glob("*.svg")}
    assert {"groups.svg", "layers.svg", "layers-share.svg", "search.svg"} < set(pictures)
    assert {"leakage-hair_colour_ä-logits.svg", "leakage-age-bottleneck.svg"} < set(pictures)
    for picture in pictures.values():
        assert base64.b64encode(picture).decode() in page
        ElementTree.fromstring(picture)
    # Each has a title and a table, which follows it.
    assert page.count("<figcaption><strong>") == len(pictures) == page.count("<table>") - 1
    (folder / "report" / "old.svg").write_text("<svg/>")
    write_page(folder)
    assert {path.name for path in (folder / "report").glob("*.svg")} == set(pictures)
    assert (folder / "report" / "index.html").read_text("utf-8") == page  # the same bytes


def test_a_picture_turns_light_where_the_reader_prefers_dark(tmp_path):
    folder = folder_of(tmp_path / "out", document())
    write_page(folder)
    svg = (folder / "report" / "groups.svg").read_text("utf-8")
    (rules,) = re.findall(r"<style>@media \(prefers-color-scheme:dark\)\{(.*?)\}</style>", svg)
    ink = re.search(r'\[style\*="fill: (#\w+)"\]\{fill:#ececef', rules)
    assert ink
    assert svg.count(f"fill: {ink[1]}") > 5  # of texts
    assert "DejaVu" not in svg


@pytest.mark.parametrize(
    ("report", "parts"),
    [
        (document(groups=12, layers=50), ("class 2, bias value 3", "stage.49.block.conv")),
        (document(groups=12, layers=90), ("the table has their names", "stage.89.block.conv")),
        (document(groups=100, empty=(0, 7)), ("The 24 lowest before of 98 are drawn",)),
        (document(columns=("hair", "age")), ("'hair' read off the logits", "hair value 0, age")),
        (document(word="nothing to remove"), ("Nothing to remove",)),
        (document(history=[], layers=1), ("Before and after",)),
    ],
)
def test_results_of_every_shape_fit(tmp_path, report, parts):
    page = write_page(folder_of(tmp_path / "out", report))
    text = read(page)
    for part in parts:
        assert part in text, part
    assert page.stat().st_size < 5e6


def test_what_was_not_measured_is_left_out(tmp_path):
    report = document()
    for row in report["operations"]:
        row["sparsity"]["gated"] = None
        row["audit"] = {**row["audit"], "biases": {"bias": {"chance": 0.5, "leakage": None}}}
    nothing = {"difference": None, "low": None, "high": None}
    report["verdict"] |= {"worst_group": nothing, "balanced": nothing}
    text = read(write_page(folder_of(tmp_path / "out", report)))
    assert "No group has enough rows to be compared, against vanilla" in text
    assert "What was removed" not in text
    assert "Leakage" not in text


def illustrated(path):
    """Make the folder of a result with a sweep, features, and an image with what is looked at."""
    audit = audit_of([0.5, 0.75], ("bias",))
    sweep = [
        {
            **{"gamma": gamma, "masked": True, "bias_term": 0.1, "select": audit},
            "sparsity": {"gated": 0.5 - gamma / 16, "all": 0.2, "units": None},
            "controls": {"magnitude": 0.375, "random": gamma / 8},
        }
        for gamma in (2.0, 5.0)
    ]
    example = {"target": "cat", "bias": {"bias": "<red>"}, "path": "a.png", "kind": "fixed"}
    example |= {"before": "dog", "after": "cat", "file": "examples/001.png"}
    example["looks"] = {"before": "examples/001-before.png", "after": "examples/001-after.png"}
    points = [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]
    plane = {"points": points, "shares": [0.75, 0.125]}
    # A bias may be called like the target.
    named = {"target": ["cat", "dog", "cat"], "bias": {"target": ["red", "blue", "red"]}}
    features = {"before": plane, "after": plane, **named}
    report = document(examples=[example, {**example, "file": "lost.png"}], features=features)
    folder = folder_of(path, report, sweep)
    (folder / "report" / "examples").mkdir(parents=True)
    for name in ("001", "001-before", "001-after"):
        Image.new("RGB", (4, 4)).save(folder / "report" / "examples" / f"{name}.png")
    return folder


def test_a_sweep_images_and_features_are_shown(tmp_path):
    folder = illustrated(tmp_path / "out")
    page = write_page(folder)
    text = read(page)
    parts = ("cat, bias <red>", "right only after", "dog → cat", "Accuracy and leakage over gamma")
    for part in (*parts, "Features by target", "Features by bias 'target'", "1.00 ± 1.41"):
        assert part in text, part
    sweep = json.loads((folder / "sweep.json").read_text("utf-8"))
    sparse = sparsity_chart(sweep)
    assert sparse is not None
    assert sparse.grid.heads[1:] == ("searched, %", "magnitude, %", "random, %")
    assert sparse.grid.rows[0] == ("18.8", "62.5", "37.5", "62.5")  # the least sparse first
    assert sparsity_chart([{**record, "controls": {}} for record in sweep]) is None
    assert sparse.title in text


def test_many_values_are_numbered():
    many = {"points": [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]] * 20, "shares": [0.75, 0.125]}
    classes = [f"class {k}" for k in range(60)]
    chart = feature_chart({"before": many, "after": many, "target": classes})
    assert "Numbers are the table's lines" in chart.note
    assert "class 1" not in chart.svg


def test_where_the_network_looks_stands_beside_the_image(tmp_path):
    folder = illustrated(tmp_path / "out")
    html = write_page(folder).read_text("utf-8")
    image = (folder / "report" / "examples" / "001.png").read_bytes()
    assert html.count(base64.b64encode(image).decode()) == 3
    for part in ("a.png: dog before, cat after", "Where it looks before: a.png", "(Grad-CAM)"):
        assert part in html
    report = json.loads((folder / "report.json").read_text("utf-8"))
    for example in report["examples"]:
        example["looks"] = {}
    (folder / "report.json").write_text(json.dumps(report), "utf-8")
    html = write_page(folder).read_text("utf-8")
    assert html.count(base64.b64encode(image).decode()) == 1
    assert "Grad-CAM" not in html


def test_charts_draw_what_their_tables_say():
    report = document(groups=4)
    before, after = (report["operations"][k]["audit"] for k in (0, 2))
    grid = group_chart(before, after, "ffw").grid
    assert [row[2][:4] for row in grid.rows] == ["25.0", "37.5", "50.0", "62.5"]
    leaks = leakage_charts(report["operations"], "bias")
    assert [chart.name for chart in leaks] == ["leakage-bias-bottleneck", "leakage-bias-logits"]
    assert leaks[0].grid.rows[0] == ("vanilla", "75.0", "87.5")
    assert leaks[1].grid.rows[2] == ("ffw+erase", "75.0", "-")
    grid = layer_charts(report["layers"])[0].grid
    assert grid.rows[1] == ("stage.1.block.conv", "Conv2d", "2,000", "1,000", "50.0", "8", "1")
    course = history_chart(report["history"])
    assert course is not None
    assert course.grid.heads == ("epoch", "task loss, nats", "sparsity, %")  # no constant
    assert course.grid.rows[3] == ("4", "0.25", "4")
    assert history_chart(report["history"][:1]) is None


def test_several_results_stand_side_by_side(tmp_path):
    folders = [
        folder_of(tmp_path / "one", document()),
        folder_of(tmp_path / "two", document(word="worse")),
    ]
    write_several(folders, tmp_path / "page.html")
    text = read(tmp_path / "page.html")
    for part in (str(folders[0]), "worse", "93.8", "75.0 / -", "Accuracy of the worst group"):
        assert part in text, part
    assert "do not compare" not in text
    base = {"sha256": "00" * 32, "architecture": "timm:other", "num_classes": 3}
    folders.append(folder_of(tmp_path / "three", document(base=base)))
    write_several(folders, tmp_path / "page.html")
    assert "of different checkpoints, so their figures do not compare" in read(
        tmp_path / "page.html"
    )
    folders.append(folder_of(tmp_path / "four", document(columns=("age",))))
    with pytest.raises(ArtefactError, match=r"one: found biases bias, elsewhere age; lay results"):
        write_several(folders, tmp_path / "page.html")


def test_a_folder_without_measurements_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match=r"report.json: cannot be read.*an operation has writ"):
        write_page(tmp_path)
    folder = folder_of(tmp_path / "out", document())
    (folder / "report").write_text("in the way")
    with pytest.raises(ArtefactError, match="report"):
        write_page(folder)


def test_long_names_are_cut_where_they_are_alike():
    layers = [f"module.encoder.stage.{k}.block.projection.weights" for k in range(3)]
    assert told_apart(layers) == [f"…{k}…" for k in range(3)]
    assert told_apart(["conv1", "layer.0.conv"]) == ["conv1", "layer.0.conv"]
    long = ["a" * 40, "b" * 40]
    assert told_apart(long) == [f"{letter * 14}…{letter * 15}" for letter in "ab"]
    assert told_apart(["x" * 40]) == ["x" * 14 + "…" + "x" * 15]
