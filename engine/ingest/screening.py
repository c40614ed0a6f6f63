"""Which rows of a source are taken, and their split: the same for every format, before anything is written."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.relations.splits import SplitOptions, draw_splits
from engine.signals import barcodes
from engine.specimens.schema import SPECIMEN_SCHEMA, SPLITS
from engine.specimens.taxonomy import RANKS, Taxonomy

SKIPPED = "skipped"
IMAGE_REMOVED = "image removed"
BARCODE_REMOVED = "barcode removed"


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that report.json names. The part of `reason` before a ": " is its category."""

    kind: str
    key: str
    reason: str


def screen(table: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """Leave out rows whose key was there before, whose split is unknown, or that have neither image nor barcode."""
    identity = pc.dictionary_encode(table["key"].combine_chunks()).indices.to_numpy()
    first = np.zeros(table.num_rows, dtype=bool)
    first[np.unique(identity, return_index=True)[1]] = True
    split_known = pc.or_(pc.is_null(table["split"]), pc.is_in(table["split"], pa.array(SPLITS))).to_numpy()
    usable = pc.or_(pc.is_valid(table["image"]), pc.is_valid(table["barcode"])).to_numpy()
    keep = first & split_known & usable
    problems = []
    rows = np.flatnonzero(~keep).tolist()
    keys, splits = (table[column].filter(pa.array(~keep)).to_pylist() for column in ("key", "split"))
    for row, key, split in zip(rows, keys, splits, strict=True):
        if not first[row]:
            reason = "duplicate key"
        elif not split_known[row]:
            reason = f"unknown split: {split!r}, allowed {', '.join(SPLITS)}"
        else:
            reason = "neither image nor barcode"
        problems.append(Problem(SKIPPED, key, reason))
    return table.filter(pa.array(keep)), problems


def assign_splits(table: pa.Table, options: SplitOptions | None) -> tuple[pa.Table, dict[str, Any]]:
    """Give specimens without a split one: train (options None), or by a scheme of `engine.relations.splits`.

    Args:
        table: with columns key, barcode, split, one per rank, and perhaps image and group, whose equals stay in one
            split; others are kept as they are.
        options: the scheme, None = all are train.

    Returns the table, and what was done, for the report: "given" and "assigned" specimens, "how", and with a scheme
    also the number of "groups" of barcodes, "groups_crossing_given_splits" and "test_barcodes_found_in_train": of val
    and test barcodes the share that train has letter for letter ("identical") or in the same group ("related").
    """
    split = table["split"].combine_chunks()
    num_missing = split.null_count
    note: dict[str, Any] = {"given": table.num_rows - num_missing, "assigned": num_missing, "how": "as in the source"}
    if not num_missing:
        return table, note
    if options is None:
        note["how"] = "specimens without a split are train; --split-scheme or --split-fractions assigns them"
        split = split.fill_null("train")
    else:
        given = pc.index_in(split, pa.array(SPLITS)).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        columns = {rank: table[rank] for rank in RANKS}
        labels = Taxonomy.build(columns).encode(columns)
        ties = [_numbered(table[name]) for name in ("image", "group") if name in table.column_names]
        if options.by_event and "image" in table.column_names:
            ties.append(_numbered(pc.replace_substring_regex(table["image"], r"\d+(\D*)$", "")))
        drawn = draw_splits(table["key"].to_pylist(), _cleaned(table["barcode"]), labels, given, options, ties)
        split = pa.array(SPLITS).take(pa.array(drawn.codes))
        note |= {
            "how": f"{options.scheme}, train:val:test {':'.join(f'{part:g}' for part in options.fractions)}, "
            f"seed {options.seed}, barcodes grouped by {options.grouping}",
            "groups": int(drawn.groups.max(initial=-1)) + 1,
            "groups_crossing_given_splits": drawn.crossing_given,
            "test_barcodes_found_in_train": {"identical": drawn.identical, "related": drawn.related},
        }
    return table.set_column(table.schema.get_field_index("split"), SPECIMEN_SCHEMA.field("split"), split), note


def _numbered(column: pa.ChunkedArray) -> np.ndarray:
    """Return int64 [N]: equal texts have equal numbers; -1 = null."""
    indices = column.combine_chunks().dictionary_encode().indices
    return indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _cleaned(column: pa.ChunkedArray) -> list[str]:
    """Clean barcodes, "" where there is none or it cannot be read; each different one is cleaned once."""
    encoded = column.combine_chunks().dictionary_encode()
    known = [*(_clean_or_empty(barcode) for barcode in encoded.dictionary.to_pylist()), ""]
    return [known[code] for code in encoded.indices.fill_null(len(known) - 1).to_pylist()]


def _clean_or_empty(barcode: str) -> str:
    try:
        return barcodes.clean(barcode)
    except ValueError:
        return ""
