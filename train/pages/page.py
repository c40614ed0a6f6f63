"""The report as one self-contained page: a summary that fits a screen, then the tables and pictures behind it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from engine import html, markdown
from engine.html import Section
from engine.specimens.taxonomy import RANKS
from train import metrics
from train.evaluation import error_analysis
from train.pages import plots, tables
from train.pages.result import NOT_COMPARED, Evaluation

Values = Mapping[str, float]


def report(found: Evaluation, name: str, scoring: str, extra: Sequence[Section] = ()) -> str:
    """Return the whole page.

    Args:
        found: the evaluation that is shown.
        name: what the model is called.
        scoring: of the tables that stand open; the others are folded.
        extra: sections of parts that were asked for (curves, retrieval, calibration).
    """
    values, split = found.metrics, found.split
    sections = [
        Section("In short", _summary(found)),
        Section("The paper's tables", _paper(values, split, scoring)),
        Section("Fusion against the better single modality", _fusion(found)),
        Section("Against plain baselines", _peers(values, split)),
        Section("Do the ranks agree with one another?", _consistency(values, split)),
        Section("Families confused", _confusion(found)),
        Section("The long tail", _tail(values, split)),
        *extra,
        Section("How it was measured", _method(found)),
    ]
    lead = f"Specimens of the split {split}: {found.predictions.num_rows:,}. Right answers in %, with 95% intervals."
    return html.page(f"{name}: how well it names specimens", sections, lead)


def table(shown: tables.Table) -> str:
    """Return a table of `train.pages.tables` as HTML, its title above it."""
    return html.paragraph(shown.title) + html.table(shown.header, shown.rows)


def _summary(found: Evaluation) -> list[str]:
    values, split = found.metrics, found.split
    rows = []
    for query in plots.measured(values, split):
        clean, noisy = (metrics.prefix(split, query, condition) for condition in ("clean", plots.NOISY[query]))
        novel = metrics.prefix(split, query, "clean", scope="novel")
        keys = [f"{start}/{rank}/top1" for rank in ("species", "genus") for start in (clean, noisy)]
        keys += [f"{clean}/species/macro_top1", f"{novel}/species/top1"]
        cells = [markdown.with_interval(values, key) for key in keys]
        rows.append([plots.TITLES[query], *cells, f"{values[f'{clean}/rows']:,.0f}"])
    if not rows:
        return [html.paragraph("No specimen could be asked with.")]
    header = [
        "asked with",
        "species",
        "species, damaged",
        "genus",
        "genus, damaged",
        "species, mean over taxa",
        "species, new barcodes",
        "n",
    ]
    chart = html.figure(plots.accuracy_bars(values, split), "Top-1 accuracy per rank, clean and damaged input, in %")
    return [html.table(header, rows), html.bullets(_sentences(found)), chart]


def _sentences(found: Evaluation) -> list[str]:
    """Return the few facts that a reader should not miss."""
    values, split = found.metrics, found.split
    told = []
    key = "species/top1"
    for query, peers in (("image", "image/"), ("dna", "dna/")):
        own = values.get(f"{metrics.prefix(split, query, 'clean')}/{key}")
        others = {
            text: values[f"{metrics.prefix(split, peer, 'clean')}/{key}"]
            for peer, text in tables.PEERS.items()
            if peer.startswith(peers) and f"{metrics.prefix(split, peer, 'clean')}/{key}" in values
        }
        if own is not None and others:
            best = max(others, key=lambda text: others[text])
            told.append(
                f"Species by {plots.TITLES[query]} alone: {markdown.percent(own)}; the best plain baseline ({best}) "
                f"has {markdown.percent(others[best])}."
            )
    if "species" in found.comparison:
        one = found.comparison["species"]
        gap = one.difference
        verdict = "better than" if gap.low > 0 else "worse than" if gap.high < 0 else "not clearly different from"
        told.append(
            f"With photo and barcode both damaged, gated fusion is {verdict} {plots.TITLES[one.modality]} alone: "
            f"{100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) at species."
        )
    for query in plots.TITLES:
        start = f"{split}/calibration/{query}/species"
        if values.get(f"{start}/coverage"):
            right, covered = (markdown.percent(values[f"{start}/{name}"]) for name in ("accuracy_at", "coverage"))
            told.append(
                f"By {plots.TITLES[query]} it names a species with 0.95 or more for {covered}% of a mixture of clean, "
                f"damaged and unknown specimens; {right}% of these are right "
                f"({markdown.interval(values, f'{start}/accuracy_at')})."
            )
    lost = sum(sum(names.values()) for names in found.unknown.values())
    told += [f"{lost:,} labels are of taxa that the model was never shown; they are not scored."] if lost else []
    return told


def _paper(values: Values, split: str, scoring: str) -> list[str]:
    blocks = []
    for heading, view in tables.views():
        shown = tables.paper_tables(values, split, view)
        if not shown:
            continue
        body = [table(one) for one in shown]
        headline = view == tables.View(scoring=scoring, intervals=True)
        blocks += body if headline else [html.folded(heading, *body)]
    told = "Each cell: top-1/top-5, and under it the interval of top-1. " + tables.populations(values, split)
    return [*blocks, html.paragraph(told, dim=True)]


def _fusion(found: Evaluation) -> list[str]:
    return [table(tables.comparison_table(found.comparison)) if found.comparison else html.paragraph(NOT_COMPARED)]


def _peers(values: Values, split: str) -> list[str]:
    shown = tables.peer_table(values, split)
    return [table(shown) if shown else html.paragraph("No baseline was measured.")]


def _consistency(values: Values, split: str) -> list[str]:
    rows = []
    for scoring in ("rollup", "prompt"):
        for query, condition in tables.TABLE2:
            start = f"{metrics.prefix(split, query, condition, scoring)}/consistency"
            if f"{start}/whole" in values:
                keys = [f"{start}/{name}" for name in (*RANKS[1:], "whole")]
                shown = [tables.LABELS[query], tables.LABELS.get(condition, condition)]
                rows.append([scoring, *shown, *(markdown.percent(values[key]) for key in keys)])
    pairs = [f"{fine} in its {coarse}" for coarse, fine in pairwise(RANKS)]
    header = ["scoring", "query", "condition", *pairs, "whole lineage"]
    told = (
        "Share (%) of answers whose taxon at a rank lies in the taxon answered one rank above. The best taxon of each "
        "rank is taken for itself, so they can contradict one another: by roll-up where several lineages are about as "
        "probable, by prompts also where the captions of a taxon and of its parent are told apart badly."
    )
    return [html.paragraph(told), html.table(header, rows)] if rows else [html.paragraph("No answer to compare.")]


def _confusion(found: Evaluation, rank: str = "family") -> list[str]:
    blocks: list[str] = []
    for query in plots.measured(found.metrics, found.split):
        for condition in ("clean", plots.NOISY[query]):
            column = f"{query}_{condition}_{rank}"
            truth = found.predictions[f"true_{rank}"].to_pylist()
            answer = found.predictions[column].to_pylist()
            names, counts = error_analysis.confusion(truth, answer)
            if not names:
                continue
            title = f"{plots.TITLES[query]}, {'clean' if condition == 'clean' else 'damaged'}"
            caption = f"Families answered for each true family ({title}), % of its specimens; 0.5 and more in figures"
            wrong = error_analysis.most_confused(truth, answer)
            rows = [(one, other, count, f"{share:.1%}") for one, other, count, share in wrong]
            body = [html.figure(plots.heat_map(names, counts), caption)]
            body += [html.table(["true family", "answered", "specimens", "of the family"], rows)] if rows else []
            is_first = not blocks
            blocks += body if is_first else [html.folded(f"The same: {title}", *body)]
    return blocks or [html.paragraph("No family is known.")]


def _tail(values: Values, split: str) -> list[str]:
    bins = error_analysis.tail_labels()
    rows = []
    for query in plots.measured(values, split):
        for condition in ("clean", plots.NOISY[query]):
            start = f"{metrics.prefix(split, query, condition)}/tail"
            cells = []
            for name in bins:
                count = values.get(f"{start}/{name}/rows", 0)
                bounds = (values.get(f"{start}/{name}/{side}", math.nan) for side in ("low", "high"))
                told = "–".join(markdown.percent(bound) for bound in bounds)
                top1 = markdown.percent(values[f"{start}/{name}/top1"]) if count else ""
                cells.append(f"{top1}\n{told}\nn {count:,}" if count else "–")
            if any(cell != "–" for cell in cells):
                rows.append([plots.TITLES[query], "clean" if condition == "clean" else "damaged", *cells])
    if not rows:
        return [html.paragraph("The shards have no training split, so that nothing can be counted.")]
    caption = "Species accuracy by the number of training specimens of the true species"
    return [
        html.figure(plots.tail_lines(values, split, bins), caption),
        html.folded("The numbers", html.table(["query", "condition", *bins], rows)),
    ]


def _method(found: Evaluation) -> list[str]:
    told = [
        "roll-up: one softmax over the complete known lineages; a taxon has the sum over its descendants. prompt: the "
        "captions of the taxa of each rank compete. Every taxon that the model knows is a candidate.",
        "Intervals: 95%, percentiles of a bootstrap over groups of specimens with the same barcode; where every answer "
        "is right (or wrong) the exact bound for that many groups.",
        "micro: every specimen counts the same; macro: every taxon does. novel: the barcode neither contains nor is "
        "contained in any training barcode.",
        "Damaged: photo blurred, barcode with the paper's substitutions, gaps, N and cut end, drawn from the "
        "specimen's key alone.",
        "global exact: the whole lineage; global compat.: the answer agrees at every labelled rank.",
        *found.left_out(),
    ]
    return [html.bullets(told)]
