"""Tables of the benchmarks: means and standard deviations over seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from surgeon.report.cells import (
    Result,
    Row,
    facts,
    grouped,
    is_as_trained,
    is_default,
    operation_rows,
    ordered,
    place,
    point,
)
from surgeon.report.figures import difference, leak, spread, table

if TYPE_CHECKING:
    from surgeon.benchmarks.published import Published

Caveat = Callable[[str, str], str | None]
"""Benchmark and scale to the sentence on how far published rows may be compared."""

_AVERAGES = ("average", "balanced", "worst group")
_PLACES = ("head input", "logits", "bottleneck")
# What tells the cells of one benchmark and scale apart.
_CELL = ("rho", "net", "rows", "label_rho", "discovery", "epochs")
# The controls of a curve would not fit beside its operations.
_ON_CURVES = (
    *("vanilla", "leace", "dfr", "finetune", "ffw+erase", "ffw-structured+erase", "ffw-paper"),
)

_LEGEND = (
    "Figures in %, mean ± standard deviation over the seeds; of differences the mean, in points, "
    "with the means of the ends of their 95 % intervals."
)


def render_bench(
    results: Sequence[Result],
    published: Sequence[Published] = (),
    caveat: Caveat | None = None,
) -> str:
    """Render results as Markdown: a section for every benchmark and scale.

    Args:
        results: Documents of `surgeon bench`, in any order; seeds of one cell are put together.
        published: Rows to set beside them, marked as such.
        caveat: Says how far those may be compared.

    Returns:
        Text in percent, mean ± standard deviation over seeds.
    """
    sections = []
    for (benchmark, scale), group in grouped(results, ("benchmark", "scale")).items():
        known = [row for row in published if row.benchmark == benchmark]
        beside = any(_beside(result, known) for result in group)
        warning = caveat(str(benchmark), str(scale)) if beside and caveat else None
        sections.append(_section(f"{benchmark}, {scale} scale", group, known, warning))
    return "\n\n".join(sections)


def _section(
    title: str, results: Sequence[Result], published: Sequence[Published], warning: str | None
) -> str:
    lines = [f"## {title}", "", _LEGEND]
    lines += dict.fromkeys(result["source"] for result in results)
    parts = ["\n".join(lines), *([warning] if warning else [])]
    parts += _by_rho(results, published)
    parts += _curve(results, "net", "Network")
    parts += _curve(results, "rows", "Labelled rows (fit + select)")
    parts += _curve(results, "label_rho", "Share of labelled rows that follow the shortcut")
    for cell in grouped(results, _CELL).values():
        parts += _cell(cell, _beside(cell[0], published))
    return "\n\n".join(parts)


def _beside(result: Result, published: Sequence[Published]) -> list[Published]:
    """Return the published rows that a setting is set beside."""
    default, as_trained = is_default(result), is_as_trained(result)
    of_rho = [row for row in published if row.rho in (None, result["setting"]["rho"])]
    return [row for row in of_rho if default or (as_trained and row.as_trained)]


def _by_rho(results: Sequence[Result], published: Sequence[Published]) -> list[str]:
    """Set the average accuracies of several correlations side by side."""
    cells = grouped([result for result in results if is_default(result)], ("rho",))
    rhos = [rho for (rho,) in cells if rho is not None]
    known = [row for row in published if row.rho in rhos and "average" in row.figures]
    if len(rhos) < 2 and not known:
        return []
    rows = {rho: operation_rows(cells[rho,]) for rho in rhos}
    names = ordered(name for rho in rhos for name in rows[rho])
    body = [
        [
            name,
            *(
                spread([_average(row["audit"], "average") for row in rows[rho].get(name, [])])
                for rho in rhos
            ),
        ]
        for name in names
    ]
    for method in dict.fromkeys(row.method for row in known):
        figures = {row.rho: row.figures["average"] for row in known if row.method == method}
        body.append([f"published: {method}", *(spread([figures.get(rho)]) for rho in rhos)])
    heads = ["average accuracy", *(f"rho {rho}" for rho in rhos)]
    return ["### By correlation of the training rows", table(heads, body)]


def _curve(results: Sequence[Result], field: str, title: str) -> list[str]:
    """Follow the worst group over one field of the setting, all others being equal."""
    parts = []
    for family in grouped(results, [name for name in _CELL if name != field]).values():
        cells = sorted(grouped(family, (field,)).values(), key=lambda cell: place(cell[0], field))
        found = [(cell, operation_rows(cell)) for cell in cells]
        # The vanilla network is the same at every point.
        points = [(cell, row) for cell, row in found if not {*_ON_CURVES[1:]}.isdisjoint(row)]
        if len(points) < 2:
            continue
        names = [name for name in _ON_CURVES if any(name in row for _, row in points)]
        body = [
            [
                point(cell[0], field),
                *(
                    spread([_average(r["audit"], "worst group") for r in row.get(name, [])])
                    for name in names
                ),
                difference([result["against_dfr"] for result in cell if result["against_dfr"]]),
            ]
            for cell, row in points
        ]
        about = [facts(family[0], without=field), "worst-group accuracy"]
        parts.append(f"### {title}: {', '.join(filter(None, about))}")
        parts.append(table([title.lower(), *names, "ffw less dfr (95 % interval)"], body))
    return parts


def _cell(results: Sequence[Result], published: Sequence[Published]) -> list[str]:
    """Show every operation of one setting."""
    rows = operation_rows(results)
    first = results[0]
    biases = list(first["operations"][0]["by_alignment"]["gap"])
    several = len(biases) > 1
    heads = ["operation", "seeds", *_AVERAGES]
    heads += [f"gap {bias}" if several else "gap" for bias in biases]
    heads += [f"{place} {bias}" if several else place for bias in biases for place in _PLACES]
    heads += ["pruned", "units off", "seconds"]
    body = [_line(name, rows[name], biases) for name in ordered(rows)]
    for row in published:
        if {"average", "gap", "pruned"} & set(row.figures):
            body.append(_published_line(row, heads))
    chance = ", ".join(
        f"{bias} {100 * first['operations'][0]['audit']['biases'][bias]['chance']:.1f}"
        for bias in biases
    )
    legend = (
        "worst: the worst group; gap: accuracy where the bias value is the one most training rows "
        f"of the target have, less elsewhere; bottleneck, head input, logits: leakage, linear / "
        f"MLP probe (chance: {chance})."
    )
    title = f"### {facts(first) or 'Default setting'}"
    return [
        title,
        _training(first),
        *_guesses(results),
        table(heads, body),
        legend,
        *_alignment(rows, published),
        *_verdicts(results),
        *_slices(results),
    ]


def _training(result: Result) -> str:
    how, rows = result["training"], result["rows"]
    lost = f" ({result['dropped']} more were repeated)" if result["dropped"] else ""
    return (
        f"Vanilla network: {how['net']}, {how['optimiser']} at {how['lr']}, {how['epochs']} epochs "
        f"on {rows['train']} rows; {rows['fit']} fit, {rows['select']} select, {rows['report']} "
        f"report rows{lost}."
    )


def _guesses(results: Sequence[Result]) -> Iterable[str]:
    """Say how a guessed bias agrees with the true one, once for every seed."""
    told = {r["setting"]["seed"]: r["guess"] for r in results if "guess" in r}.values()
    if told:
        figures = [spread([guess[key] for guess in told]) for key in ("recall", "precision")]
        rows = " / ".join(str(guess["conflicting"]) for guess in told)
        yield (
            f"Of {rows} fit and select rows that go against the shortcut the guess finds "
            f"{figures[0]} %; of those it names {figures[1]} % are."
        )


def _slices(results: Sequence[Result]) -> Iterable[str]:
    """Say what slicing left of structured operations, and that it predicts the same."""
    for name in dict.fromkeys(result["operation"] for result in results):
        told = [r["sliced"] for r in results if r["operation"] == name and "sliced" in r]
        if told:
            had, left, rows, same = (
                " / ".join(str(seed[key]) for seed in told)
                for key in ("parameters", "parameters_left", "rows", "same")
            )
            yield (
                f"{name}, sliced: {left} of {had} parameters are left, and {same} of {rows} report "
                "rows are predicted as by the folded network."
            )


def _line(name: str, rows: Sequence[Row], biases: Sequence[str]) -> list[str]:
    audits = [row["audit"] for row in rows]
    cells = [
        name,
        str(len(rows)),
        *(spread([_average(a, key) for a in audits]) for key in _AVERAGES),
    ]
    cells += [spread([row["by_alignment"]["gap"][bias] for row in rows]) for bias in biases]
    for bias in biases:
        places = [audit["biases"][bias]["leakage"] or {} for audit in audits]
        cells += [leak([read.get(name.replace(" ", "_")) for read in places]) for name in _PLACES]
    cells += [spread([row["sparsity"][kind] for row in rows]) for kind in ("gated", "units")]
    seconds = fmean(row["seconds"] for row in rows)
    return [*cells, f"{seconds:.0f}" if seconds else "-"]


def _published_line(row: Published, heads: Sequence[str]) -> list[str]:
    cells = [spread([row.figures.get(head)]) for head in heads[1:]]
    return [f"published: {row.method}", *cells]


def _alignment(rows: Mapping[str, Sequence[Row]], published: Sequence[Published]) -> Iterable[str]:
    """Show the groups of aligned and conflicting biases, where they are what papers report."""
    patterns = [
        group["aligned"] for group in next(iter(rows.values()))[0]["by_alignment"]["groups"]
    ]
    known = [row for row in published if {"mean", "conflicting"} & set(row.figures)]
    if len(patterns) == 2 and not known:
        return
    heads = ["by alignment", *map(_pattern, patterns), "mean"]
    body = []
    for name in ordered(rows):
        parts = [row["by_alignment"] for row in rows[name]]
        cells = [
            spread([part["groups"][i]["accuracy"] for part in parts]) for i in range(len(patterns))
        ]
        body.append([name, *cells, spread([part["mean"] for part in parts])])
    body += [_published_line(row, heads) for row in known]
    yield table(heads, body)


def _pattern(aligned: Mapping[str, bool]) -> str:
    """Name a group: `both aligned`, `left aligned only`, `both conflicting`."""
    chosen = [column for column, yes in aligned.items() if yes]
    every = {1: "", 2: "both "}.get(len(aligned), "all ")
    if len(chosen) in (0, len(aligned)):
        return f"{every}{'aligned' if chosen else 'conflicting'}"
    return f"{' and '.join(chosen)} aligned only"


def _verdicts(results: Sequence[Result]) -> Iterable[str]:
    by_name: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result["setting"]["seed"]):
        by_name.setdefault(result["operations"][-1]["name"], []).append(result)
    for name in ordered(by_name):
        for key in ("verdict", "against_dfr"):
            judged = [result for result in by_name[name] if result[key]]
            if judged:
                words = ", ".join(f"{r['setting']['seed']} {r[key]['word']}" for r in judged)
                change = difference([result[key] for result in judged])
                against = judged[0][key]["against"]
                yield f"{name} against {against}, worst group: {change} points; by seed: {words}."


def _average(audit: Mapping[str, Any], name: str) -> float | None:
    return audit[f"{name.replace(' ', '_')}_accuracy"]
