"""Queries and references of the nearest-reference benchmarks, read from a table of barcodes (Parquet).

Conditions: `whole`; `2x` (`degrade_barcode` at that severity); `100` (a fragment of as many nucleotides on either
strand); `100+2%` (the same with wrong letters). Damage is a function of the seed and of the query's key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.signals.barcodes import clean
from engine.signals.degrade import BarcodePreset, degrade_barcode, fragment
from engine.specimens.names import is_species
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS
from train.reference import Library, nearest_labels

CONDITIONS = ("whole", "1x", "2x", "4x", "300", "200", "150", "100", "75", "100+2%", "150+2%")


@dataclass(frozen=True)
class Barcodes:
    """Specimens with a barcode; records have key, ranks, and what else the table has."""

    records: pa.Table
    barcodes: list[str]

    def take(self, rows: np.ndarray) -> "Barcodes":
        """Some of them, int64."""
        return Barcodes(self.records.take(pa.array(rows)), [self.barcodes[row] for row in rows.tolist()])


def read(path: Path, split: str, limit: int = 0, seed: int = 0) -> Barcodes:
    """Read a split's specimens with a barcode, or `limit` of them drawn at random, in stored order."""
    table = pq.read_table(path)
    table = table.filter(pc.equal(table["split"], split))
    if "key" not in table.column_names:
        key = "processid" if "processid" in table.column_names else "id"
        table = table.append_column("key", table[key].cast(pa.string()))
    columns = ["key", *RANKS, *(name for name in ("bin_uri", "country") if name in table.column_names)]
    barcodes = [clean(raw or "") for raw in table["barcode"].to_pylist()]
    rows = np.flatnonzero([bool(barcode) for barcode in barcodes])
    if limit and limit < len(rows):
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    return Barcodes(table.select(columns), barcodes).take(rows)


def named(some: Barcodes, count: int, first: int = 0) -> Barcodes:
    """Take `count` specimens that are named by binomials, from the `first` of them on."""
    rows = np.flatnonzero(is_species(some.records["species"].to_pylist()))
    return some.take(rows[first : first + count])


def damaged(some: Barcodes, condition: str, seed: int = 0) -> list[str]:
    """Return the barcodes in a condition."""
    rngs = [rng_for(seed, 0, key, condition) for key in some.records["key"].to_pylist()]
    pairs = list(zip(some.barcodes, rngs, strict=True))
    if condition == "whole":
        return some.barcodes
    if condition.endswith("x"):
        return [degrade_barcode(sequence, rng, float(condition[:-1])) for sequence, rng in pairs]
    length, _, wrong = condition.removesuffix("%").partition("+")
    pieces = [(fragment(sequence, rng, int(length)), rng) for sequence, rng in pairs]
    return [substitute(piece, rng, float(wrong or 0) / 100) for piece, rng in pieces]


def substitute(sequence: str, rng: np.random.Generator, share: float) -> str:
    """Replace letters of a barcode by others, each with this probability."""
    return degrade_barcode(sequence, rng, 1.0, BarcodePreset.only(substitution=share))


def right_labels(library: Library, some: Barcodes, found: np.ndarray) -> np.ndarray:
    """Say of labels int64 [N, R] of the library which are those of the specimens: bool [N, R]."""
    right = np.zeros(found.shape, dtype=bool)
    for rank, name in enumerate(RANKS):
        place = {taxon: number for number, taxon in enumerate(library.taxonomy.names[rank])}
        truth = np.array([place.get(taxon, -2) for taxon in some.records[name].to_pylist()])
        right[:, rank] = found[:, rank] == truth
    return right


def right_names(library: Library, some: Barcodes, queries: Sequence[str], threads: int) -> np.ndarray:
    """Search and say which names are right, bool [N, R]."""
    return right_labels(library, some, nearest_labels(library, library.search(queries, threads=threads)))
