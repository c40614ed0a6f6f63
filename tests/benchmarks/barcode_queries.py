"""Queries and references of the barcode benchmarks: read from shards, damaged, withheld. No model, no images.

Legend: N queries, M references, R ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batches.pipeline import label_columns, load_index
from engine.relations.containment import novel_mask
from engine.signals.degrade import degrade_barcode, fragment
from engine.specimens.names import is_species
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS, Taxonomy
from train.evaluation import subsets

SPECIES, GENUS = RANKS.index("species"), RANKS.index("genus")


@dataclass(frozen=True)
class Side:
    """Specimens with a barcode: their rows of the index and their cleaned barcodes."""

    index: pa.Table
    barcodes: list[str]

    def take(self, rows: np.ndarray) -> "Side":
        """Some of them; bool [N] or int64."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Side(self.index.take(pa.array(rows)), [self.barcodes[row] for row in rows.tolist()])

    @property
    def species(self) -> list[str | None]:
        return self.index["species"].to_pylist()


@dataclass(frozen=True)
class Task:
    """Queries, references, and the labels that both are scored by: int64 [N, R] and [M, R], -1 = not scored."""

    queries: Side
    references: Side
    query_labels: np.ndarray
    reference_labels: np.ndarray
    groups: np.ndarray  # int64 [N], resampled together
    novel: np.ndarray  # bool [N]
    taxonomy: Taxonomy  # of the labels


def read(shards: Path, split: str, limit: int = 0, seed: int = 0) -> Side:
    """A split's specimens with a barcode, or `limit` of them drawn at random, in stored order."""
    index = load_index([shards])
    index = index.filter(pc.and_(pc.equal(index["split"], split), pc.greater(index["dna_size"], 0)))
    if limit and limit < len(index):
        index = index.take(pa.array(np.sort(np.random.default_rng(seed).permutation(len(index))[:limit])))
    side = Side(index, subsets.read_barcodes(index))
    return side.take(np.array([bool(sequence) for sequence in side.barcodes]))


def make_task(queries: Side, references: Side) -> Task:
    """Labels of both sides by one taxonomy; species that are no binomials are not scored as truths."""
    both = label_columns(pa.concat_tables([queries.index, references.index]))
    taxonomy = Taxonomy.build(both)
    labels = taxonomy.encode(both)
    truths, known = labels[: len(queries.barcodes)].copy(), labels[len(queries.barcodes) :]
    truths[~is_species(queries.species), SPECIES] = -1
    for rank in range(len(RANKS)):  # nobody can answer what no reference has
        truths[~np.isin(truths[:, rank], known[:, rank]), rank] = -1
    novel = novel_mask(queries.barcodes, references.barcodes)
    return Task(queries, references, truths, known, subsets.barcode_groups(queries.barcodes), novel, taxonomy)


def binomial_only(references: Side) -> Side:
    """The references whose species label names a described species."""
    return references.take(is_species(references.species))


def withheld_species(references: Side) -> set[str]:
    """Species to withhold: in genera of two species or more, those with int(md5(name), 16) % 5 == 0, but not all of a
    genus (its first by name is kept). Only binomials count as species."""
    genera: dict[str, set[str]] = {}
    named = is_species(references.species)
    for genus, species, good in zip(references.index["genus"].to_pylist(), references.species, named, strict=True):
        if good and genus:
            genera.setdefault(genus, set()).add(str(species))
    chosen: set[str] = set()
    for members in genera.values():
        drawn = {name for name in members if int(hashlib.md5(name.encode()).hexdigest(), 16) % 5 == 0}
        if len(members) > 1:
            chosen |= drawn if drawn < members else drawn - {min(drawn)}
    return chosen


def damaged(side: Side, condition: str) -> list[str]:
    """The barcodes in a condition: `clean`, `2x` (the preset at that severity) or `100nt` (a fragment, half of them
    reverse-complemented). A function of the specimen's key."""
    keys: Sequence[str] = side.index["key"].to_pylist()
    if condition == "clean":
        return side.barcodes
    if condition.endswith("nt"):
        size = int(condition[:-2])
        return [fragment(s, rng_for(0, 0, key, "fragment"), size) for key, s in zip(keys, side.barcodes, strict=True)]
    severity = float(condition.removesuffix("x"))
    pairs = zip(keys, side.barcodes, strict=True)
    return [degrade_barcode(s, rng_for(0, 0, key, "degrade"), severity) for key, s in pairs]
