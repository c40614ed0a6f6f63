"""What a curator checks before training: a set of specimens in, findings out. `job` runs it with Ray."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from engine.signals import barcodes
from engine.specimens.schema import BadSpecimen
from engine.store.members import Members
from engine.store.shards import read_index


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one check of one set (or of several together)."""

    check: str  # short name, also of the CSV
    title: str
    count: int  # what was found; 0 = nothing to look at
    unit: str  # of the count
    meaning: str  # what it means, in a sentence or two
    table: pa.Table  # one row for everything found
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # numbers besides, ready for JSON
    is_note: bool = False  # worth knowing, but nothing a curator must act on: leaves the exit code alone
    of_set: str = ""


@dataclasses.dataclass(frozen=True)
class SpecimenSet:
    """The stored specimens of one folder, without photos.

    `unique` are its different clean barcodes, `place` int64 [N] is each specimen's among them (-1 = no barcode).
    """

    name: str
    index: pa.Table  # INDEX_SCHEMA, N rows
    unique: list[str]
    place: np.ndarray

    @functools.cached_property
    def oriented(self) -> tuple[list[str], np.ndarray]:
        """The different barcodes on their coding strand, and the strand each was on (+1, -1: int8)."""
        progress = tqdm(self.unique, desc="strands", unit="barcode", disable=None)
        turned = [barcodes.orient(sequence) for sequence in progress]
        return [sequence for sequence, _ in turned], np.array([strand for _, strand in turned], dtype=np.int8)

    def codes(self, column: str) -> tuple[np.ndarray, list[str]]:
        """int64 [N] code of each specimen's value (-1 = none) and the values."""
        encoded = self.index[column].combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, encoded.dictionary.to_pylist()

    def keys(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Return the tar keys of some rows."""
        return self.index["key"].take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()


def read_set(directory: str) -> SpecimenSet:
    """Read index and barcodes of a shard folder. Raises ValueError when it is none, BadSpecimen for a damaged one."""
    index = read_index(directory)
    members = Members(directory)
    places: dict[str, int] = {}
    place = np.full(index.num_rows, -1, dtype=np.int64)
    stored = tqdm(members.barcodes(index), total=len(index), desc="read barcodes", unit="specimen", disable=None)
    for row, raw in enumerate(stored):
        try:
            barcode = barcodes.clean(raw or "")
        except ValueError as error:
            raise BadSpecimen(index["key"][row].as_py(), index["shard"][row].as_py(), str(error)) from None
        if barcode:
            place[row] = places.setdefault(barcode, len(places))
    members.close()
    return SpecimenSet(directory, index, list(places), place)
