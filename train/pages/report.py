"""What an evaluation leaves on disk: metrics.json, tables.md, predictions.parquet, one picture and a page."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from engine.batches.pipeline import label_columns
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.commits import new_files
from train import metrics
from train.evaluation.predict import Encoded
from train.evaluation.top1_accuracy import Rankings, Subsets

METRICS, TABLES, PREDICTIONS, PICTURE, PAGE = (
    "metrics.json",
    "tables.md",
    "predictions.parquet",
    "accuracy.png",
    "report.html",
)
FILES = (PAGE, METRICS, TABLES, PREDICTIONS, PICTURE)
ROW_GROUP = 65_536  # specimens of predictions.parquet that are read together


def predictions(
    index: pa.Table, encoded: Encoded, rankings: Rankings, taxonomy: Taxonomy, subsets: Subsets
) -> pa.Table:
    """Return one row per specimen, in the order of the index.

    Columns, each described in the file's own metadata:

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


def write(
    out: Path, values: Mapping[str, object], text: str, page: str, table: pa.Table, picture: Figure | None = None
) -> None:
    """Write metrics.json (nan becomes null), tables.md, report.html, predictions.parquet, and the picture.

    They appear in the folder `out` together, or not at all; other files of it stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    with new_files(out) as part:
        _fill(part, values, text, page, table)
        if picture is not None:
            picture.savefig(part / PICTURE, dpi=150)


def _fill(out: Path, values: Mapping[str, object], text: str, page: str, table: pa.Table) -> None:
    clean = {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}
    (out / METRICS).write_text(json.dumps(clean, indent=1, ensure_ascii=False), encoding="utf-8")
    (out / TABLES).write_text(text, encoding="utf-8")
    (out / PAGE).write_text(page, encoding="utf-8")
    pq.write_table(table, out / PREDICTIONS, row_group_size=ROW_GROUP)
