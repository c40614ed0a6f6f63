"""Which specimens count, and which stand or fall together: barcodes, their groups, unknown labels.

Legend: N specimens.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from engine.batches.pipeline import label_columns
from engine.signals import barcodes
from engine.specimens.names import is_provisional
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.members import COLUMNS, Members

log = logging.getLogger(__name__)


def read_barcodes(index: pa.Table) -> list[str]:
    """Return the cleaned barcode of every row of the index; "" where none can be read (logged)."""
    members = Members()
    result = []
    rows = index.select(["folder", *COLUMNS]).to_pylist()
    for row in tqdm(rows, desc="reading barcodes", disable=None, leave=False):
        sequence = ""
        try:
            sequence = barcodes.clean(members.barcode(row) or "")
        except (ValueError, OSError) as error:
            log.warning("specimen %s: barcode: %s", row["key"], error)
        result.append(sequence)
    return result


def barcode_groups(sequences: Sequence[str]) -> np.ndarray:
    """int64 [N], 0..G-1: specimens of one cleaned barcode share a group, each without a barcode has its own."""
    named: dict[object, int] = {}
    keys = (sequence or row for row, sequence in enumerate(sequences))
    return np.array([named.setdefault(key, len(named)) for key in keys], dtype=np.int64)


def without_provisional(index: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return the index without species labels like "Aedes cf. vexans" or "Eubazus Malaise7758", with their counts.

    They are labels of a type of their own: an answer that is a binomial is neither right nor wrong about them.
    """
    names = index["species"].to_pylist()
    provisional = is_provisional(names)
    species = pa.array([None if out else name for name, out in zip(names, provisional, strict=True)], pa.string())
    counts = Counter(name for name, out in zip(names, provisional, strict=True) if out)
    place = index.schema.get_field_index("species")
    return index.set_column(place, "species", species), dict(counts.most_common())


def unknown_names(index: pa.Table, taxonomy: Taxonomy) -> dict[str, dict[str, int]]:
    """Per rank the names of these shards that the taxonomy does not know, with their numbers of specimens.

    Their specimens count nowhere at that rank, because no answer could be right.

    Raises:
        ValueError: when no labelled specimen has a single known label; the model is of another taxonomy.
    """
    columns = label_columns(index)
    labels = taxonomy.encode(columns)
    result: dict[str, dict[str, int]] = {}
    given = np.zeros(len(index), dtype=bool)
    for rank, name in enumerate(RANKS):
        names = np.array([value or "" for value in columns[name]], dtype=object)
        given |= names != ""
        lost, counts = np.unique(names[(names != "") & (labels[:, rank] < 0)].astype(str), return_counts=True)
        if len(lost):
            result[name] = dict(sorted(zip(lost.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1]))
    known = (labels >= 0).any(axis=1)
    if given.any() and not known.any():
        example = next(iter(next(iter(result.values()))))
        raise ValueError(
            f"the checkpoint's taxonomy ({len(taxonomy.names[-1])} species) knows none of the labels of these shards: "
            f"0% of {given.sum()} labelled specimens, e.g. {example!r} is unknown to it"
        )
    return result
