"""METHOD's tables as text: Markdown whose columns line up, so that it reads the same in a terminal.

A table is made of metrics only (`measure.measure`), so it can be printed again from metrics.json.
"""

import math
from collections.abc import Mapping, Sequence

from engine.taxonomy import RANKS
from train import metrics
from train.evaluation.compare import Comparison

Metrics = Mapping[str, float]

LABELS = {
    "image": "image", "dna": "dna", "average": "average", "fused": "gated fusion", "clean": "clean",
    "noisy_dna": "noisy dna", "noisy_both": "noisy both", "global_exact": "global exact",
    "global_compatible": "global compat.",
}  # fmt: skip
TABLE1 = (("image", "clean"), ("image", "noisy"), ("dna", "clean"), ("dna", "noisy"))
TABLE2 = (
    *TABLE1,
    ("average", "clean"), ("average", "noisy_dna"), ("average", "noisy_both"),
    ("fused", "clean"), ("fused", "noisy_dna"), ("fused", "noisy_both"),
)  # fmt: skip
PEERS = {
    "image/colour_histogram": "colour histogram, nearest photo",
    "dna/nearest_6mer": "6-mers, nearest barcode",
    "dna/nearest_feature": "model's features, nearest barcode",
}
SCORING_TEXT = {
    "rollup": "roll-up: softmax over the complete known lineages, a taxon is the sum over its descendants",
    "prompt": "prompt: the captions of the taxa of each rank compete",
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; those with a letter in their first row to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    is_text = [any(letter.isalpha() for letter in cell) and "to" not in cell.split() for cell in rows[0]]
    sides = [str.ljust if left else str.rjust for left in is_text]
    rule = ["-" * width if left else "-" * (width - 1) + ":" for left, width in zip(is_text, widths, strict=True)]
    lines = [[sides[i](cell, widths[i]) for i, cell in enumerate(row)] for row in [header, *rows]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])


def percent(value: float | None) -> str:
    """0.9312 -> "93.1"; a dash where nothing could be measured."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def both_tops(values: Metrics, start: str, average: str = "") -> str:
    """`top-1/top-5`; `average` is "" (micro) or "macro_"."""
    pair = [percent(values.get(f"{start}/{average}top{k}")) for k in metrics.TOP]
    return "–" if set(pair) == {"–"} else "/".join(pair)


def _rows(values: Metrics, split: str, which: tuple[str, str, str], queries: Sequence[tuple[str, str]],
          single: str = "all") -> list[list[str]]:  # fmt: skip
    """Rows for those queries that were measured; `single` is the subset taken for image and dna alone."""
    scoring, scope, average = which
    rows = []
    for query, condition in queries:
        subset = single if scope == "all" and query in ("image", "dna") else scope
        start = metrics.prefix(split, query, condition, scoring, subset)
        if not values.get(f"{start}/rows"):
            continue
        shown = f"noisy {query}" if condition == "noisy" else LABELS[condition]
        cells = [both_tops(values, f"{start}/{column}", average) for column in metrics.COLUMNS]
        rows.append([LABELS[query], shown, *cells, f"{values[f'{start}/rows']:,.0f}"])
    return rows


def paper_tables(values: Metrics, split: str, scoring: str = "rollup", scope: str = "all", average: str = "") -> str:
    """METHOD's Table 1 (single modalities) and Table 2 (fusion; all its rows on the specimens that have both).

    Args:
        values: of `measure.measure`.
        scoring: rollup or prompt.
        scope: `all` or `novel`, the specimens that count.
        average: "" for micro, "macro_" for the mean over taxa.
    """
    header = ["query", "condition", *(LABELS.get(column, column) for column in metrics.COLUMNS), "n"]
    which = (scoring, scope, average)
    text = []
    kind = "macro over taxa" if average else "micro"
    what = f"{scoring}, {kind}" + (", novel barcodes only" if scope == "novel" else "")
    if rows := _rows(values, split, which, TABLE1):
        text.append(f"Table 1. Single modalities, {split}: top-1/top-5 in % ({what})\n\n" + markdown(header, rows))
    if fusion := _rows(values, split, which, TABLE2[len(TABLE1) :]):
        rows = _rows(values, split, which, TABLE1, single="both") + fusion
        text.append(
            f"Table 2. Fusion, {split}: top-1/top-5 in %, specimens with image and barcode ({what})\n\n"
            + markdown(header, rows)
        )
    return "\n\n".join(text) or f"No specimen of {split} to show ({what})."


def peer_table(values: Metrics, split: str) -> str:
    """The model's clean and noisy top-1 beside the baselines', micro per rank, species also macro and on novel rows."""
    header = ["query", "method", "condition", *RANKS, "species macro", "species novel", "n"]
    rows = []
    for query in ("image", "dna"):
        names = {query: "this model"} | {peer: text for peer, text in PEERS.items() if peer.startswith(query)}
        for condition in ("clean", "noisy"):
            for name, text in names.items():
                start = metrics.prefix(split, name, condition)
                if not values.get(f"{start}/rows"):
                    continue
                novel = metrics.prefix(split, name, condition, scope="novel")
                keys = [f"{start}/{rank}/top1" for rank in RANKS]
                keys += [f"{start}/species/macro_top1", f"{novel}/species/top1"]
                cells = [percent(values.get(key)) for key in keys]
                rows.append([query, text, condition, *cells, f"{values[f'{start}/rows']:,.0f}"])
    if not rows:
        return "No baseline was measured."
    return f"Baselines, {split}: top-1 in % (this model: roll-up, micro)\n\n" + markdown(header, rows)


def comparison_text(found: Mapping[str, Comparison]) -> str:
    """Fused minus the better single modality, everything damaged, per rank with its paired interval."""
    if not found:
        return "Fusion is not compared: that takes specimens with image and barcode in val and in another split."
    header = ["rank", "better single (val)", "fused", "single", "difference", "95% interval", "n", "barcode groups"]
    rows = []
    for rank, one in found.items():
        gap = one.difference
        rows.append([
            rank, one.modality, percent(gap.first), percent(gap.second), f"{100 * gap.value:+.1f}",
            f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}", f"{gap.rows:,}", f"{gap.groups:,}",
        ])  # fmt: skip
    title = "Gated fusion minus the better single modality, both inputs noisy: top-1 in % (paired, roll-up)"
    return f"{title}\n\n" + markdown(header, rows)


def full_text(values: Metrics, split: str) -> str:
    """The body of tables.md: both tables for each scoring, average and subset."""
    parts = []
    for scope, name in (("all", "All specimens"), ("novel", "Novel barcodes")):
        for scoring in ("rollup", "prompt"):
            for average in ("", "macro_"):
                start = metrics.prefix(split, "dna", "clean", scope=scope)
                if scope == "novel" and not values.get(f"{start}/rows"):
                    continue
                title = f"## {name}, {scoring}, {'macro over taxa' if average else 'micro'}"
                parts.append(f"{title}\n\n{paper_tables(values, split, scoring, scope, average)}")
    return "\n\n".join(parts)


def populations(values: Metrics, split: str) -> str:
    """How many specimens have a known label at each rank: the columns have different populations."""
    parts = []
    for query in ("image", "dna"):
        start = metrics.prefix(split, query, "clean")
        if values.get(f"{start}/rows"):
            counts = [(rank, values[f"{start}/{rank}/rows"], values[f"{start}/{rank}/taxa"]) for rank in RANKS]
            named = ", ".join(f"{rank} {rows:,.0f} ({taxa:,.0f} taxa)" for rank, rows, taxa in counts)
            parts.append(f"{query}: {named}")
    return "Labelled specimens with " + "; ".join(parts) + "." if parts else "No specimen."
