"""The benchmark's tables: means, deviations and published rows, checked by hand."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
from surgeon_cli.main import app
from typer.testing import CliRunner

from surgeon.benchmarks.files import VERSION, read_results, write_result
from surgeon.benchmarks.published import PUBLISHED, Published, caveat
from surgeon.benchmarks.sets import SETS
from surgeon.errors import ArtefactError
from surgeon.report import render_bench


def row_of(name, average, worst=0.5, *, columns=("bias",), leaks=None, groups=None, pruned=None):
    """Make one operation's row; every figure not given is one half."""
    places = {place: {"linear": 0.5, "mlp": 0.25} for place in ("bottleneck", "logits")}
    places |= {"head_input": None, **(leaks or {})}
    biases = {column: {"chance": 0.1, "leakage": places} for column in columns}
    patterns = product((True, False), repeat=len(columns))
    rows = [
        {"aligned": dict(zip(columns, pattern, strict=True)), "n": 10, "accuracy": accuracy}
        for pattern, accuracy in zip(patterns, groups or [0.5] * 2 ** len(columns), strict=True)
    ]
    return {
        "name": name,
        "audit": {
            "average_accuracy": average,
            "balanced_accuracy": 0.5,
            "worst_group_accuracy": worst,
            "biases": biases,
        },
        "by_alignment": {"groups": rows, "mean": 0.5, "gap": dict.fromkeys(columns, 0.5)},
        "sparsity": {"gated": pruned, "all": None, "units": None},
        "seconds": 10.0,
    }


def result(done, seed=0, operation="ffw", fit=5000, verdicts=None, **setting):
    """Make one result file's document."""
    own = {"benchmark": "biased-mnist", "seed": seed, "rho": 0.99, "scale": "small", "net": None}
    own |= {"rows": None, "label_rho": None, "discovery": None, "epochs": None}
    verdicts = verdicts or {}
    training = {"net": "some_net", "optimiser": "sgd", "lr": 0.1, "epochs": 20}
    return {
        "version": VERSION,
        "setting": {**own, **setting},
        "operation": operation,
        "config": {},
        "source": "digits, made up",
        "rows": {"train": 30000, "fit": fit, "select": 1000, "report": 5000},
        "training": training,
        "dropped": 2,
        "operations": done,
        "verdict": verdicts.get("verdict"),
        "against_dfr": verdicts.get("against_dfr"),
    }


def verdict(difference, low, high, word="improved", against="dfr"):
    span = {"difference": difference, "low": low, "high": high}
    return {"word": word, "against": against, "worst_group": span}


def tables(text):
    """Read every Markdown table: header cells to the rows below, by first cell."""
    found, current = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            current = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if current is None:
            current = {"": cells}
            found.append(current)
        elif set(line) - set("| -"):
            current[cells[0]] = dict(zip(current[""][1:], cells[1:], strict=True))
    return found


def test_means_and_deviations_over_seeds():
    head = {"head_input": {"linear": 0.2, "mlp": None}}
    runs = [
        result(
            [row_of("vanilla", a), row_of("ffw+erase", b, leaks=head, pruned=p)],
            seed=seed,
        )
        for seed, a, b, p in ((0, 0.50, 0.90, 0.40), (1, 0.60, 0.94, 0.5), (2, 0.70, 0.95, 0.45))
    ]
    runs.append(result([row_of("ffw-paper", 0.8, None)], operation="ffw-paper"))
    (table,) = tables(render_bench(list(reversed(runs))))
    assert list(table)[1:] == ["vanilla", "ffw+erase", "ffw-paper"]
    assert table[""] == [
        *("operation", "seeds", "average", "balanced", "worst group", "gap", "head input"),
        *("logits", "bottleneck", "pruned", "units off", "seconds"),
    ]
    # Sample deviation: sqrt((100 + 0 + 100) / 2) = 10; sqrt((9 + 1 + 4) / 2) = 2.65.
    assert table["vanilla"]["average"] == "60.0 ± 10.0"
    assert table["ffw+erase"]["average"] == "93.0 ± 2.6"
    assert table["ffw+erase"]["seeds"] == "3"
    assert table["ffw+erase"]["head input"] == "20.0 ± 0.0 / -"
    assert table["ffw+erase"]["logits"] == "50.0 ± 0.0 / 25.0 ± 0.0"
    assert table["ffw+erase"]["pruned"] == "45.0 ± 5.0"
    assert table["vanilla"]["pruned"] == table["vanilla"]["head input"] == "-"
    assert table["ffw-paper"]["average"] == "80.0"
    assert table["ffw-paper"]["seeds"] == "1"
    assert table["ffw-paper"]["worst group"] == "-"
    assert table["vanilla"]["seconds"] == "10"


@pytest.mark.parametrize("first", ["brought", "own"])
def test_the_result_of_an_operation_goes_before_the_row_that_another_brought_along(first):
    brought = [result([row_of("finetune", 0.5), row_of("ffw", 0.9)], seed=s) for s in (0, 1)]
    own = [result([row_of("finetune", 0.7)], operation="finetune")]
    (table,) = tables(render_bench([*own, *brought] if first == "own" else [*brought, *own]))
    assert table["finetune"]["average"] == "60.0 ± 14.1"
    assert table["finetune"]["seeds"] == "2"


def test_baselines_are_those_of_the_mask():
    own = [result([row_of("vanilla", 0.5), row_of("ffw", 0.9)])]
    other = [result([row_of("vanilla", 0.7), row_of("adversarial", 0.8)], operation="adversarial")]
    for runs in (own + other, other + own):
        (table,) = tables(render_bench(runs))
        assert table["vanilla"]["average"] == "50.0"
        assert table["adversarial"]["average"] == "80.0"


def test_a_zero_has_no_minus():
    found = {"verdict": verdict(-1e-5, -0.2, 1e-5)}
    done = row_of("vanilla", -1e-5) | {"seconds": 0.0}
    text = render_bench([result([done], verdicts=found)])
    assert tables(text)[0]["vanilla"]["average"] == "0.0"
    assert tables(text)[0]["vanilla"]["seconds"] == "-"
    assert "worst group: +0.0 (-20.0 to +0.0) points" in text


def test_a_figure_missing_in_one_seed_is_no_mean():
    runs = [result([row_of("ffw", 0.5, worst)], seed=seed) for seed, worst in ((0, 0.1), (1, None))]
    (table,) = tables(render_bench(runs))
    assert table["ffw"]["worst group"] == "-"
    assert table["ffw"]["average"] == "50.0 ± 0.0"


def test_several_correlations_with_the_published_rows_beside():
    runs = [
        result([row_of("vanilla", average)], seed=seed, rho=rho)
        for rho, seed, average in ((0.999, 0, 0.1), (0.99, 0, 0.5), (0.99, 1, 0.6), (0.95, 0, 0.9))
    ]
    runs.append(result([row_of("vanilla", 0.0)], rho=0.9, net="other"))
    text = render_bench(runs, PUBLISHED, caveat)
    first = tables(text)[0]
    assert first[""] == ["average accuracy", "rho 0.95", "rho 0.99", "rho 0.999"]
    assert list(first["vanilla"].values()) == ["90.0", "55.0 ± 7.1", "10.0"]
    assert list(first["published: vanilla"].values()) == ["-", "88.5", "10.0"]
    assert list(first["published: FFW, structured"].values()) == ["-", "97.6", "19.9"]
    assert "published: VCBA, lr 0.01 in its first stage" in first
    assert text.count("not to be compared directly") == 1
    # The cell's own table carries them where they are of that correlation.
    by_title = dict(zip(re.findall(r"^### (.*)$", text, re.MULTILINE), tables(text), strict=True))
    assert by_title["rho 0.99"]["published: FFW, unstructured"]["pruned"] == "46.5"
    assert by_title["rho 0.99"]["published: FFW, unstructured"]["average"] == "97.8"
    for title in ("rho 0.95", "rho 0.9, net other"):
        assert not any(name.startswith("published") for name in by_title[title])


def test_rows_as_those_trained_on_stand_beside_what_was_published_of_such():
    runs = [
        result([row_of("vcba", 0.9)], **setting)
        for setting in (
            {"label_rho": 0.99, "discovery": "voronoi", "rows": 30000},
            *({"label_rho": 0.9}, {"label_rho": 0.99, "net": "other"}),
        )
    ]
    text = render_bench(runs, PUBLISHED, caveat)
    assert text.count("not to be compared directly") == 1
    by_title = dict(zip(re.findall(r"^### (.*)$", text, re.MULTILINE), tables(text), strict=True))
    title = "rho 0.99, 30000 labelled rows, labels at rho 0.99, bias guessed by voronoi"
    as_trained = by_title.pop(title)
    assert as_trained["published: VCBA"]["average"] == "97.7"
    assert as_trained["published: vanilla"]["average"] == "88.5"
    assert not any(name.startswith("published: FFW") for name in as_trained)
    assert len(by_title) == 2
    assert not any(name.startswith("published") for rows in by_title.values() for name in rows)


def test_every_published_row_has_a_benchmark_and_fractions():
    assert {row.benchmark for row in PUBLISHED} <= set(SETS)
    keys = {"average", "mean", "aligned", "conflicting", "both conflicting", "gap", "pruned"}
    for row in PUBLISHED:
        assert set(row.figures) <= keys | {"bias head"}
        assert all(0 < value < 1 for value in row.figures.values())
        assert row.source.endswith(tuple("0123456789"))
    by_rho = {r.rho: r.figures["average"] for r in PUBLISHED if r.method == "VCBA" and r.rho}
    assert by_rho == {0.99: 0.977, 0.995: 0.955, 0.997: 0.927, 0.999: 0.587}
    assert len({(r.benchmark, r.method, r.rho) for r in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("benchmark", "scale", "told"),
    [
        ("biased-mnist", "small", "28 x 28 pixels"),
        ("biased-mnist", "paper", "on recoloured training digits"),
        ("corrupted-cifar10", "paper", "JPEG copy of CIFAR-10"),
        ("cifar10s", "small", "JPEG copy of CIFAR-10"),
        ("multi-color-mnist", "paper", None),
        ("digits", "small", None),
    ],
)
def test_caveats(benchmark, scale, told):
    found = caveat(benchmark, scale)
    assert found is None if told is None else told in found


def test_two_biases_show_their_four_groups():
    groups = [(0.9, 0.8, 0.7, 0.1), (0.7, 0.6, 0.5, 0.3)]
    runs = [
        result(
            [row_of("vanilla", 0.5, columns=("left", "right"), groups=g)],
            seed=seed,
            benchmark="multi-color-mnist",
            rho=None,
        )
        for seed, g in enumerate(groups)
    ]
    text = render_bench(runs, PUBLISHED, caveat)
    main, groups = tables(text)
    assert "\n### Default setting\n" in text
    assert main["vanilla"]["gap left"] == "50.0 ± 0.0"
    assert main["vanilla"]["logits right"] == "50.0 ± 0.0 / 25.0 ± 0.0"
    assert "published: FFW" not in main
    assert groups["vanilla"] == {
        "both aligned": "80.0 ± 14.1",
        "left aligned only": "70.0 ± 14.1",
        "right aligned only": "60.0 ± 14.1",
        "both conflicting": "20.0 ± 14.1",
        "mean": "50.0 ± 0.0",
    }
    assert groups["published: DebiAN"] == {
        **dict.fromkeys(("both aligned", "left aligned only", "right aligned only"), "-"),
        "both conflicting": "16.0",
        "mean": "72.0",
    }


def test_one_bias_shows_aligned_and_conflicting_where_papers_do():
    runs = [result([row_of("ffw", 0.5, groups=(0.9, 0.4))], benchmark="cifar10s", rho=0.95)]
    main, groups = tables(render_bench(runs, PUBLISHED))
    assert main["published: GBA"]["gap"] == "0.1"
    assert groups["ffw"] == {"aligned": "90.0", "conflicting": "40.0", "mean": "50.0"}
    assert groups["published: GBA"]["mean"] == "92.0"
    assert len(tables(render_bench([result([row_of("ffw", 0.5)])]))) == 1


def test_curves_over_labelled_rows_and_over_their_correlation():
    def point(worst, spans, seed=0, **setting):
        found = {"against_dfr": verdict(*spans)}
        rows = [row_of("dfr", 0.5, worst - 0.1), row_of("ffw+erase", 0.5, worst)]
        rows.append(row_of("random", 0.5, 0.0))
        return result(rows, seed=seed, verdicts=found, **setting)

    runs = [
        point(0.60, (0.02, -0.01, 0.05), rows=100, fit=80),
        point(0.80, (0.04, 0.01, 0.07), rows=100, fit=80, seed=1),
        point(0.70, (0.1, 0.05, 0.2)),
        point(0.50, (-0.1, -0.2, -0.05), label_rho=0.9),
        result([row_of("ffw-structured+erase", 0.5, 0.3)], operation="ffw-structured"),
    ]
    text = render_bench(runs)
    rows, shares, *cells = tables(text)
    assert "### Labelled rows (fit + select): rho 0.99, worst-group accuracy" in text
    assert list(rows)[1:] == ["80 + 1000", "5000 + 1000"]
    assert rows["80 + 1000"] == {
        "dfr": "60.0 ± 14.1",
        "ffw+erase": "70.0 ± 14.1",
        "ffw-structured+erase": "-",
        "ffw less dfr (95 % interval)": "+3.0 (+0.0 to +6.0)",
    }
    assert rows["5000 + 1000"]["ffw less dfr (95 % interval)"] == "+10.0 (+5.0 to +20.0)"
    assert rows["5000 + 1000"]["ffw-structured+erase"] == "30.0"
    assert list(shares)[1:] == ["unbiased", "0.9"]
    assert shares["0.9"]["ffw less dfr (95 % interval)"] == "-10.0 (-20.0 to -5.0)"
    assert len(cells) == 3


def test_a_point_without_an_operation_of_the_curve_is_none():
    def runs(name):
        rows = [row_of("vanilla", 0.5), row_of(name, 0.5)]
        return [result(rows, operation=name, label_rho=rho) for rho in (None, 0.9)]

    assert "### Share of labelled rows" in render_bench(runs("dfr"))
    assert "### Share of labelled rows" not in render_bench(runs("gba"))
    assert "### Share of labelled rows" not in render_bench([runs("dfr")[0], runs("gba")[1]])


def test_networks_are_set_side_by_side():
    runs = [
        result([row_of("dfr", 0.5, worst)], net=net, benchmark="digits", rho=0.97)
        for net, worst in ((None, 0.1), ("test_vit", 0.2), ("test_resnet", 0.3))
    ]
    first, *cells = tables(render_bench(runs))
    assert first[""] == ["network", "dfr", "ffw less dfr (95 % interval)"]
    assert [row["dfr"] for name, row in first.items() if name] == ["10.0", "30.0", "20.0"]
    assert list(first)[1:] == ["some_net", "test_resnet", "test_vit"]
    assert first["test_vit"]["ffw less dfr (95 % interval)"] == "-"
    assert len(cells) == 3


def test_verdicts_are_told_by_operation_and_seed():
    runs = [
        result(
            [row_of("vanilla", 0.5), row_of(name, 0.5)],
            seed=seed,
            operation=name,
            verdicts={
                "verdict": verdict(d, d - 0.1, d + 0.1, word, "vanilla"),
                "against_dfr": dfr,
            },
        )
        for name, dfr in (("ffw", verdict(0.0, None, None, "no significant change")), ("gba", None))
        for seed, d, word in ((0, 0.2, "improved"), (1, 0.0, "worse"))
    ]
    # Cells are put in the order of their fit rows, which guesses may change.
    runs[0]["rows"] = {**runs[0]["rows"], "fit": 5001}
    told = render_bench(runs)
    for name in ("ffw", "gba"):
        change = "worst group: +10.0 (+0.0 to +20.0) points; by seed: 0 improved, 1 worse."
        assert f"\n{name} against vanilla, {change}" in told
    assert (
        "\nffw against dfr, worst group: - points; by seed: 0 no significant change, 1 no" in told
    )
    assert "gba against dfr" not in told


def test_sections_and_cells_are_in_order_and_text_is_plain():
    other = result([row_of("ffw", 0.5)], scale="paper", net="a|b")
    text = render_bench([other, result([row_of("zz", 0.5), row_of("vanilla", 0.5)])], [], None)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        *("biased-mnist, paper scale", "biased-mnist, small scale"),
    ]
    assert text.index("| vanilla |") < text.index("| zz |")
    assert "digits, made up" in text
    assert "Vanilla network: some_net, sgd at 0.1, 20 epochs on 30000 rows" in text
    assert "5000 fit, 1000 select, 5000 report rows (2 more were repeated)." in text
    unknown = Published(benchmark="x", method="y", figures={"average": 0.5}, source="z")
    assert "published" not in render_bench([other], [unknown])


@pytest.fixture
def folders(tmp_path):
    runs = [result([row_of("vanilla", 0.4 + seed / 10)], seed=seed) for seed in (0, 1)]
    write_result(tmp_path / "a" / "results" / "0.json", runs[0])
    write_result(tmp_path / "b" / "1.json", runs[1])
    return [tmp_path / "a", tmp_path / "b"]


def test_results_of_several_folders_are_put_together(folders):
    shown = CliRunner().invoke(app, ["bench", "table", *map(str, folders)])
    assert shown.exit_code == 0
    assert "| vanilla | 2 | 45.0 ± 7.1 |" in shown.stdout
    assert shown.stdout.startswith("## biased-mnist, small scale\n")
    as_json = CliRunner().invoke(app, ["bench", "table", "--json", *map(str, folders)])
    assert json.loads(as_json.stdout)["results"] == read_results(folders)


def test_a_capped_result_is_left_out(folders):
    write_result(folders[1] / "2.json", result([row_of("vanilla", 0.0)], seed=2, epochs=1))
    shown = CliRunner().invoke(app, ["bench", "table", *map(str, folders)])
    assert "| vanilla | 2 | 45.0 ± 7.1 |" in shown.stdout
    assert shown.stderr == "note: 1 results of runs with --epochs are left out\n"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"cannot be read"),
        ("[]", r"is not a result of surgeon bench"),
        ('{"version": 1}', r"is not a result of surgeon bench"),
        (json.dumps({**result([]), "setting": {}}), r"is not a result of surgeon bench"),
        (json.dumps({**result([]), "operations": []}), r"is not a result of surgeon bench"),
        (json.dumps({**result([row_of("ffw", 1.0)]), "version": 99}), r"found version 99"),
        (json.dumps(result([row_of("ffw", 1.0)])), r"same setting and operation as .*0\.json"),
    ],
)
def test_damaged_results_are_one_line(folders, content, match):
    (folders[1] / "9.json").write_text(content)
    with pytest.raises(ArtefactError, match=match):
        read_results(folders)
    shown = CliRunner().invoke(app, ["bench", "table", *map(str, folders)])
    assert shown.exit_code == 1
    assert len(shown.stderr.splitlines()) == 1


def test_the_tables_of_the_documentation_are_those_of_its_results():
    docs = Path(__file__).resolve().parents[1] / "docs"
    shown = CliRunner().invoke(app, ["bench", "table", str(docs / "benchmarks")])
    assert shown.exit_code == 0
    text = (docs / "benchmarks.md").read_text("utf-8")
    assert text.endswith(shown.stdout)


def test_what_slicing_left_is_told_for_every_seed():
    sliced = {"rows": 500, "same": 500, "parameters": 900, "parameters_left": 400}
    rows = [row_of("ffw-structured", 0.9)]
    results = [
        {**result(rows, seed=seed, operation="ffw-structured"), "sliced": facts}
        for seed, facts in enumerate([sliced, {**sliced, "parameters_left": 300, "same": 499}])
    ]
    line = (
        "ffw-structured, sliced: 400 / 300 of 900 / 900 parameters are left, and 500 / 499 of "
        "500 / 500 report rows are predicted as by the folded network."
    )
    assert render_bench(results).count(line) == 1
    assert "sliced" not in render_bench([result(rows, operation="ffw-structured")])


def test_a_guessed_bias_is_told_once_for_every_seed():
    rows = [row_of("ffw", 0.9)]
    guess = {"discovery": "voronoi", "conflicting": 50, "recall": 0.9, "precision": 0.8}
    other = {**guess, "conflicting": 52, "recall": 1.0, "precision": 1.0}
    results = [
        *({**result(rows, discovery="voronoi"), "guess": guess},),
        *({**result(rows, discovery="voronoi", operation="vcba"), "guess": guess},),
        *({**result(rows, seed=1, discovery="voronoi"), "guess": other},),
    ]
    text = render_bench([*results, result(rows)])
    assert "### rho 0.99, bias guessed by voronoi" in text
    line = (
        "Of 50 / 52 fit and select rows that go against the shortcut the guess finds 95.0 ± 7.1 %; "
        "of those it names 90.0 ± 14.1 % are."
    )
    assert text.count(line) == 1
    assert text.count("the guess finds") == 1
