"""Which rows of a source are taken, and their split: the same for every format, before anything is written."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import barcodes
from engine.schema import SPECIMEN_SCHEMA, SPLITS

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


def check_fractions(fractions: tuple[float, ...]) -> None:
    """Raise ValueError unless there are three shares (train, val, test) that sum to 1."""
    if len(fractions) != 3 or any(not 0 <= part <= 1 for part in fractions) or abs(sum(fractions) - 1) > 1e-6:
        got = ",".join(map(str, fractions))
        raise ValueError(f"split fractions: got {got}, allowed: three of 0..1 (train, val, test) that sum to 1")


def assign_splits(
    table: pa.Table, fractions: tuple[float, float, float] | None, seed: int
) -> tuple[pa.Table, dict[str, Any]]:
    """Give specimens without a split one: train, or by fractions.

    With fractions, specimens of one cleaned barcode go the same way, by a hash of (seed, barcode): neither the order
    nor the number of rows matters. Specimens without a usable barcode go by their key.

    Returns the table, and what was done, for the report.
    """
    split = table["split"].combine_chunks()
    num_missing = split.null_count
    note: dict[str, Any] = {"given": table.num_rows - num_missing, "assigned": num_missing, "how": "as in the source"}
    if not num_missing:
        return table, note
    if fractions is None:
        note["how"] = "specimens without a split are train; --split-fractions assigns them"
        split = split.fill_null("train")
    else:
        note["how"] = f"by hash of the cleaned barcode, seed {seed}: train, val, test = {list(fractions)}"
        rows = pc.indices_nonzero(pc.is_null(split))
        encoded = table["barcode"].take(rows).combine_chunks().dictionary_encode()
        groups = [_cleaned_or_none(barcode) for barcode in encoded.dictionary.to_pylist()]
        codes = encoded.indices.to_pylist()
        keys = table["key"].take(rows).to_pylist()
        bounds = np.cumsum(fractions)
        by_group = [None if group is None else _draw_split(group, bounds, seed) for group in groups]
        drawn = [
            (by_group[code] if code is not None else None) or _draw_split(key, bounds, seed)
            for key, code in zip(keys, codes, strict=True)
        ]
        split = pc.replace_with_mask(split, pc.is_null(split), pa.array(drawn, pa.string()))
    return table.set_column(SPECIMEN_SCHEMA.get_field_index("split"), SPECIMEN_SCHEMA.field("split"), split), note


def _cleaned_or_none(barcode: str) -> str | None:
    try:
        return barcodes.clean(barcode) or None
    except ValueError:
        return None


def _draw_split(group: str, bounds: np.ndarray, seed: int) -> str:
    digest = hashlib.blake2b(f"{seed}\0split\0{group}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return ("train", "val", "test")[min(int(np.searchsorted(bounds, share, side="right")), 2)]
