"""What an evaluation leaves on disk: metrics.json, tables.md, predictions.parquet and one picture."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.pipeline import label_columns
from engine.taxonomy import RANKS, Taxonomy
from train import metrics
from train.evaluation.measure import Rankings, Subsets
from train.evaluation.predict import Encoded

METRICS, TABLES, PREDICTIONS, PICTURE = "metrics.json", "tables.md", "predictions.parquet", "accuracy.png"
FILES = (METRICS, TABLES, PREDICTIONS, PICTURE)

COLOURS = {"image": "#E69F00", "dna": "#0072B2", "average": "#999999", "fused": "#009E73"}  # Okabe and Ito, 2008
INSIDE = {"image": "black", "dna": "white", "average": "black", "fused": "white"}  # of the numbers, for contrast
NOISY = {"image": "noisy", "dna": "noisy", "average": "noisy_both", "fused": "noisy_both"}
TITLES = {"image": "photo", "dna": "barcode", "average": "average", "fused": "gated fusion"}


def predictions(
    index: pa.Table, encoded: Encoded, rankings: Rankings, taxonomy: Taxonomy, subsets: Subsets
) -> pa.Table:
    """One row per specimen, in the order of the index. Columns, each described in the file's own metadata:

    key; true_<rank>: the name in the shards; has_image, has_dna: could be read; group: specimens of one cleaned
    barcode; novel: barcode neither contains nor is contained in a training barcode; and, by roll-up, for every query
    and condition (image_clean, dna_noisy, fused_noisy_both, ...) and rank
    <query>_<condition>_<rank>: predicted name, ..._score: its probability, ..._position: candidates before the truth.
    """
    none = pa.nulls(len(index), pa.bool_())
    columns: dict[str, tuple[pa.Array, str]] = {"key": (pa.array(encoded.keys), "specimen, as in the shards")}
    for rank, names in label_columns(index).items():
        columns[f"true_{rank}"] = (_names(names), f"{rank} given in the shards; null = unknown")
    columns["has_image"] = (pa.array(encoded.has_image), "a photo could be read")
    columns["has_dna"] = (pa.array(encoded.has_dna), "a barcode could be read")
    columns["group"] = (pa.array(subsets.group), "specimens that share a cleaned barcode; resample these, not rows")
    novel = none if subsets.novel is None else pa.array(subsets.novel)
    columns["novel"] = (novel, "barcode neither contains nor is contained in a training barcode; null = not determined")
    for (scoring, query, condition), ranking in rankings.items():
        if scoring != "rollup":
            continue
        for column, rank in enumerate(RANKS):
            name = f"{query}_{condition}_{rank}"
            absent = ranking.taxon[:, column] < 0
            taxa = pa.array([*taxonomy.names[column]], pa.string())
            codes = pa.array(ranking.taxon[:, column].astype(np.int32), mask=absent)
            position = ranking.position[:, column]
            columns[name] = (pa.DictionaryArray.from_arrays(codes, taxa), f"most probable {rank}; null = not asked")
            columns[f"{name}_score"] = (pa.array(ranking.score[:, column], mask=absent), "its probability, 0..1")
            columns[f"{name}_position"] = (
                pa.array(position, mask=position == metrics.UNSCORED),
                f"taxa ranked before the true one: 0 = right, below 5 = in the top 5, {metrics.MISSED} = not a "
                f"candidate; null = no true {rank} known to the model, or not asked",
            )
    fields = [pa.field(name, array.type, metadata={"description": text}) for name, (array, text) in columns.items()]
    return pa.table([array for array, _ in columns.values()], schema=pa.schema(fields))


def _names(names: list[str | None]) -> pa.Array:
    return pa.array([name or None for name in names], pa.string()).dictionary_encode()


def picture(values: Mapping[str, float], split: str, path: Path, title: str = "") -> None:
    """Bars of top-1 per rank (roll-up, micro): pale to the clean accuracy, solid to the noisy one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    def top1(query: str, condition: str, rank: str) -> float:
        value = 100 * values.get(f"{metrics.prefix(split, query, condition)}/{rank}/top1", math.nan)
        return 0.0 if math.isnan(value) else value

    shown = [q for q in COLOURS if values.get(f"{metrics.prefix(split, q, 'clean')}/rows")]
    figure, axes = plt.subplots(figsize=(11, 5.2), dpi=150)
    width = 0.84 / max(1, len(shown))
    for place, query in enumerate(shown):
        at = np.arange(len(RANKS)) + (place - (len(shown) - 1) / 2) * width
        clean = [top1(query, "clean", rank) for rank in RANKS]
        noisy = [top1(query, NOISY[query], rank) for rank in RANKS]
        axes.bar(at, clean, width * 0.9, color=COLOURS[query], alpha=0.35)
        axes.bar(at, noisy, width * 0.9, color=COLOURS[query])
        for x, high, low in zip(at, clean, noisy, strict=True):
            axes.text(x, max(high, low) + 1, f"{high:.0f}", ha="center", va="bottom", fontsize=9, color="#222222")
            if low > 8:
                axes.text(x, low - 1.5, f"{low:.0f}", ha="center", va="top", fontsize=9, color=INSIDE[query])
    handles = [Patch(color=COLOURS[query], label=TITLES[query]) for query in shown]
    handles += [
        Patch(color="#777777", alpha=0.35, label="clean input (top)"),
        Patch(color="#777777", label="damaged (inside)"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncol=len(handles), frameon=False)
    axes.set_xticks(range(len(RANKS)), RANKS, fontsize=11)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(title or f"Specimens of {split} named correctly, by rank", loc="left", fontsize=13, pad=12)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def write(out: Path, values: Mapping[str, object], text: str, table: pa.Table) -> None:
    """Write metrics.json (nan becomes null), tables.md and predictions.parquet into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    clean = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}
    (out / METRICS).write_text(json.dumps(clean, indent=1, ensure_ascii=False), encoding="utf-8")
    (out / TABLES).write_text(text, encoding="utf-8")
    pq.write_table(table, out / PREDICTIONS)
