"""The robustness curves on the page, made of the metrics."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from engine import html, markdown
from engine.html import Section
from engine.specimens.taxonomy import RANKS
from train.evaluation import robustness
from train.evaluation.amplicons import AMPLICONS
from train.evaluation.robustness import OPERATIONS, curve_of
from train.pages import plots

measure = robustness.measure
AXES = {
    "preset": "severity of the paper's damage (1 = its rates)",
    "fragment": "nucleotides of the fragment",
    "blur": "side of the mean filter, pixels",
}
Values = Mapping[str, float]


def section(values: Values, split: str) -> Section:
    """Curves of every query, of every single operation, the amplified parts, the areas."""
    count = values.get(f"{split}/curves/specimens", 0)
    told = (
        f"{count:,.0f} specimens of {split}, top-1 at species in % by roll-up, with 95% intervals. One input is "
        "damaged; the other one, for average and fusion, is clean."
    )
    blocks = [html.paragraph(told)]
    for curve, label in AXES.items():
        queries = [query for query in plots.COLOURS if curve_of(values, split, curve, query, "species")]
        if queries:
            figure = _curves(values, split, [(curve, query, plots.TITLES[query]) for query in queries], label)
            blocks.append(html.figure(figure, f"Species named correctly against {label}"))
    if curve_of(values, split, "substitution", "dna", "species"):
        shown = [(name, "dna", name) for name in ("preset", *OPERATIONS)]
        figure = _curves(values, split, shown, "severity, each operation alone")
        blocks.append(html.figure(figure, "Barcode alone: the preset and each of its operations alone"))
    blocks += _gains(values, split) + _amplicons(values, split) + _areas(values, split)
    return Section("Robustness", blocks)


def _curves(values: Values, split: str, shown: Sequence[tuple[str, str, str]], label: str) -> Figure:
    """Lines of (curve, query, name) with their intervals."""
    figure = html.new_figure(9, 3.8)
    axes = figure.subplots()
    single = len({query for _, query, _ in shown}) == 1 and len(shown) > 1
    for number, (curve, query, name) in enumerate(shown):
        colour = html.COLOURS[number % len(html.COLOURS)] if single else plots.COLOURS[query]
        x, *parts = zip(
            *(
                (
                    place,
                    *(
                        100 * dict(curve_of(values, split, curve, query, "species", part)).get(place, middle)
                        for part in ("top1", "top1_low", "top1_high")
                    ),
                )
                for place, middle in curve_of(values, split, curve, query, "species")
            ),
            strict=True,
        )
        axes.plot(x, parts[0], marker="o", markersize=4, color=colour, label=name)
        axes.fill_between(x, parts[1], parts[2], color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel=label, ylabel="species top-1, %")
    axes.set_ylim(0, 103)
    axes.grid(color=plots.GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _amplicons(values: Values, split: str) -> list[str]:
    rows = []
    for one in AMPLICONS:
        for query in ("dna", "average", "fused"):
            start = f"{split}/curves/amplicon/{one.name}/{query}"
            if values.get(f"{start}/species/rows"):
                cells = [markdown.with_interval(values, f"{start}/{rank}/top1") for rank in RANKS]
                count = f"{values[f'{start}/species/rows']:,.0f}"
                rows.append([one.name, plots.TITLES[query], *cells, count])
    if not rows:
        return []
    told = "Parts of the barcode that short primers amplify; n: specimens whose barcode holds the part:"
    return [html.paragraph(told), html.table(["part", "asked with", *RANKS, "n"], rows)]


def _gains(values: Values, split: str) -> list[str]:
    rows = []
    points = [*(p for p in robustness.dna_points() if p.curve in ("preset", "fragment", "amplicon"))]
    for point in points:
        start = f"{split}/curves/{point.key}/fused_minus_dna/species"
        if f"{start}/difference" in values:
            gap, low, high = (f"{100 * values[f'{start}/{part}']:+.1f}" for part in ("difference", "low", "high"))
            shares = [markdown.percent(values[f"{start}/{part}"]) for part in ("second", "first")]
            rows.append(
                [
                    f"{point.curve} {point.key.split('/')[1]}",
                    *shares,
                    f"{gap}\n{low} to {high}",
                    f"{values[f'{start}/rows']:,.0f}",
                ]
            )
    told = "What a clean photo adds to a damaged barcode: species top-1 in %, paired on the specimens with both:"
    header = ["barcode", "barcode alone", "gated fusion", "difference", "n"]
    return [html.paragraph(told), html.table(header, rows)] if rows else []


def _areas(values: Values, split: str) -> list[str]:
    rows = []
    for curve in (*AXES, *OPERATIONS):
        for query in plots.COLOURS:
            start = f"{split}/curves/{curve}/{query}"
            if f"{start}/species/area" in values:
                cells = [markdown.percent(values.get(f"{start}/{rank}/area")) for rank in RANKS]
                rows.append([curve, plots.TITLES[query], *cells])
    told = "Area under each curve: mean top-1 in % from its first point to its last."
    return [html.paragraph(told), html.table(["curve", "asked with", *RANKS], rows)] if rows else []
