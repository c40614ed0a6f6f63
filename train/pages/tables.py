"""METHOD's tables: as Markdown whose columns line up, so that it reads the same in a terminal, or for a page.

A table is made of metrics only (`measure.measure`), so it can be printed again from metrics.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.markdown import interval, markdown, percent
from engine.specimens.taxonomy import RANKS
from train import metrics
from train.evaluation.top1_accuracy import Comparison

Metrics = Mapping[str, float]

LABELS = {
    "image": "image",
    "dna": "dna",
    "average": "average",
    "fused": "gated fusion",
    "pooled": "pool",
    "clean": "clean",
    "noisy_dna": "noisy dna",
    "noisy_both": "noisy both",
    "global_exact": "global exact",
    "global_compatible": "global compat.",
}
TABLE1 = (("image", "clean"), ("image", "noisy"), ("dna", "clean"), ("dna", "noisy"))
TABLE2 = (
    *TABLE1,
    ("average", "clean"),
    ("average", "noisy_dna"),
    ("average", "noisy_both"),
    ("fused", "clean"),
    ("fused", "noisy_dna"),
    ("fused", "noisy_both"),
    ("pooled", "clean"),
    ("pooled", "noisy_dna"),
    ("pooled", "noisy_both"),
)
PEERS = {
    "image/colour_histogram": "colour histogram, nearest photo",
    "dna/reference_library": "reference library, nearest barcode",
    "dna/nearest_6mer": "6-mers, nearest barcode",
    "dna/nearest_feature": "model's features, nearest barcode",
}


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; a cell's second line, after a line break, is its interval."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the title and the table in Markdown."""
        rows = [[" ".join(cell.splitlines()) for cell in row] for row in self.rows]
        return f"{self.title}\n\n{markdown(self.header, rows)}"


def both_tops(values: Metrics, start: str, average: str = "") -> str:
    """`top-1/top-5`; `average` is "" (micro) or "macro_"."""
    pair = [percent(values.get(f"{start}/{average}top{k}")) for k in metrics.TOP]
    return "–" if set(pair) == {"–"} else "/".join(pair)


@dataclass(frozen=True, kw_only=True)
class View:
    """What of the metrics a table shows."""

    scoring: str = "rollup"
    scope: str = "all"  # or `novel`: the specimens that count
    average: str = ""  # "" = micro, "macro_" = the mean over taxa
    intervals: bool = False  # 95% intervals of top-1 in the cells' second lines

    def told(self) -> str:
        """Return what the table counts, in words."""
        parts = [self.scoring, "macro over taxa" if self.average else "micro"]
        return ", ".join(parts) + (", novel barcodes only" if self.scope == "novel" else "")


def _rows(
    values: Metrics, split: str, view: View, queries: Sequence[tuple[str, str]], single: str = "all"
) -> list[list[str]]:
    """Rows for those queries that were measured; `single` is the subset taken for image and dna alone."""
    rows = []
    for query, condition in queries:
        subset = single if view.scope == "all" and query in ("image", "dna") else view.scope
        start = metrics.prefix(split, query, condition, view.scoring, subset)
        if not values.get(f"{start}/rows"):
            continue
        shown = f"noisy {query}" if condition == "noisy" else LABELS[condition]
        cells = []
        for column in metrics.COLUMNS:
            cell = both_tops(values, f"{start}/{column}", view.average)
            bounds = interval(values, f"{start}/{column}/{view.average}top1") if view.intervals else ""
            cells.append(f"{cell}\n{bounds}" if bounds else cell)
        rows.append([LABELS[query], shown, *cells, f"{values[f'{start}/rows']:,.0f}"])
    return rows


def paper_tables(values: Metrics, split: str, view: View) -> list[Table]:
    """METHOD's Table 1 (single modalities) and Table 2 (fusion; all its rows on the specimens that have both).

    Args:
        values: of `top1_accuracy.measure`.
        split: first part of the metrics' names.
        view: what is counted.
    """
    header = ["query", "condition", *(LABELS.get(column, column) for column in metrics.COLUMNS), "n"]
    found = []
    if rows := _rows(values, split, view, TABLE1):
        title = f"Table 1. Single modalities, {split}: top-1/top-5 in % ({view.told()})"
        found.append(Table(title, header, rows))
    if fusion := _rows(values, split, view, TABLE2[len(TABLE1) :]):
        rows = _rows(values, split, view, TABLE1, single="both") + fusion
        what = f"specimens with image and barcode ({view.told()})"
        found.append(Table(f"Table 2. Fusion, {split}: top-1/top-5 in %, {what}", header, rows))
    return found


def paper_text(values: Metrics, split: str, view: View) -> str:
    """Both tables as text."""
    found = paper_tables(values, split, view)
    return "\n\n".join(table.text() for table in found) or f"No specimen of {split} to show ({view.told()})."


def peer_table(values: Metrics, split: str) -> Table | None:
    """Return clean and noisy top-1 beside the baselines', micro per rank, species also macro and on novel rows.

    None where no baseline was measured.
    """
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
    peers = any(row[1] != "this model" for row in rows)
    return Table(f"Baselines, {split}: top-1 in % (this model: roll-up, micro)", header, rows) if peers else None


def comparison_table(found: Mapping[str, Comparison]) -> Table:
    """Fused minus the better single modality, everything damaged, per rank with its paired interval."""
    header = ["rank", "better single (val)", "fused", "single", "difference", "95% interval", "n", "barcode groups"]
    rows = []
    for rank, one in found.items():
        gap = one.difference
        rows.append(
            [
                rank,
                one.modality,
                percent(gap.first),
                percent(gap.second),
                f"{100 * gap.value:+.1f}",
                f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}",
                f"{gap.rows:,}",
                f"{gap.groups:,}",
            ]
        )
    title = "Gated fusion minus the better single modality, both inputs noisy: top-1 in % (paired, roll-up)"
    return Table(title, header, rows)


def views() -> list[tuple[str, View]]:
    """Every view of the two tables with its heading, the headline's first."""
    names = {"all": "All specimens", "novel": "Novel barcodes"}
    found = []
    for scope, name in names.items():
        for scoring in ("rollup", "prompt"):
            for average in ("", "macro_"):
                heading = f"{name}, {scoring}, {'macro over taxa' if average else 'micro'}"
                found.append((heading, View(scoring=scoring, scope=scope, average=average, intervals=True)))
    return found


def full_text(values: Metrics, split: str) -> str:
    """Return the body of tables.md: both tables for each scoring, average and subset, with the intervals there are."""
    parts = []
    for heading, view in views():
        if view.scope == "novel" and not values.get(f"{metrics.prefix(split, 'dna', 'clean', scope='novel')}/rows"):
            continue
        parts.append(f"## {heading}\n\n{paper_text(values, split, view)}")
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
