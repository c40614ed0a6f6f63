"""The same evidence on both sides: barcodes (identical, contained, overlapping) between splits and between sets.

Legend: S sets, U different barcodes of all of them.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.containment import MIN_OVERLAP, containment_groups, join_overlaps
from engine.curation import Finding, SpecimenSet

QUERIES = ("val", "test", "val_unseen", "test_unseen")
"""Splits that are asked about; what they share with any other split, or with another set, is a leak."""
_LISTED = 200_000  # rows of a table

Barcodes = tuple[list[str], list[np.ndarray], np.ndarray, np.ndarray]


def group_barcodes(sets: Sequence[SpecimenSet]) -> Barcodes:
    """The different barcodes of all sets; each set's specimens' places among them [N] (-1 = none); their groups [U] by
    containment, and by containment and overlap."""
    places: dict[str, int] = {}
    where = []
    for specimens in sets:
        own = np.array([places.setdefault(one, len(places)) for one in specimens.unique] + [-1], dtype=np.int64)
        where.append(own[specimens.place])
    unique = list(places)
    contained = containment_groups(unique)
    return unique, where, contained, join_overlaps(unique, contained, MIN_OVERLAP)


def check_split_leaks(specimens: SpecimenSet, place: np.ndarray, contained: np.ndarray, related: np.ndarray) -> Finding:
    """Specimens of query splits whose barcode another split of the same set has, in whole or in part."""
    split, names = specimens.codes("split")
    is_query = np.isin(split, [code for code, name in enumerate(names) if name in QUERIES])
    rows, kinds, partners = [], [], []
    for code, name in enumerate(names):
        if name not in QUERIES:
            continue
        asked = np.flatnonzero((place >= 0) & (split == code))
        known = np.flatnonzero((place >= 0) & (split != code) & (~is_query | (split < code)))  # a pair of queries once
        kind, partner = _matches(place, asked, known, contained, related)
        found = kind >= 0
        rows.append(asked[found])
        kinds.append(kind[found])
        partners.append(partner[found])
    row, kind, partner = (np.concatenate([np.empty(0, dtype=np.int64), *parts]) for parts in (rows, kinds, partners))
    table = _table(specimens, row, specimens, partner, kind)
    by_pair = Counter(
        zip(table["split"].to_pylist(), table["other_split"].to_pylist(), table["how"].to_pylist(), strict=True)
    )
    facts = {f"{asked} in {other}, {how}": count for (asked, other, how), count in sorted(by_pair.items())}
    told = (
        "Their barcode stands in another split too: letter for letter (identical), one inside the other (contained), "
        f"or as chained or overlapping reads of {MIN_OVERLAP} nucleotides and more (overlap). Scores of these "
        "specimens measure memory."
    )
    title = "Barcodes that cross splits"
    return Finding("split_leaks", title, len(row), "specimens", told, table, facts)


def check_set_leaks(
    one: SpecimenSet,
    other: SpecimenSet,
    places: tuple[np.ndarray, np.ndarray],
    contained: np.ndarray,
    related: np.ndarray,
) -> Finding:
    """Specimens of one set whose barcode another set has. Which split each is in decides whether it matters."""
    place = np.concatenate(places)
    count = len(places[0])
    asked, known = np.flatnonzero(place[:count] >= 0), count + np.flatnonzero(places[1] >= 0)
    kind, partner = _matches(place, asked, known, contained, related)
    found = kind >= 0
    table = _table(one, asked[found], other, partner[found] - count, kind[found])
    by_pair = Counter(zip(table["split"].to_pylist(), table["other_split"].to_pylist(), strict=True))
    facts: dict[str, object] = {"specimens with a barcode": len(asked), "how": dict(Counter(table["how"].to_pylist()))}
    facts |= {f"{asked_split} in {other_split}": n for (asked_split, other_split), n in sorted(by_pair.items())}
    told = (
        f"Specimens of {one.name} whose barcode {other.name} has too. Train on one and test on the other without them."
    )
    title = f"Barcodes of {one.name} in {other.name}"
    return Finding("set_leaks", title, int(found.sum()), "specimens", told, table, facts, of_set=one.name)


HOW = ("identical", "contained", "overlap")


def _matches(
    place: np.ndarray, asked: np.ndarray, known: np.ndarray, contained: np.ndarray, related: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each asked row: the strictest way (0.. of HOW, -1 = none) in which a known row shares its barcode, and the
    first such row."""
    kind = np.full(len(asked), -1)
    partner = np.full(len(asked), -1)
    for number, groups in reversed(list(enumerate((np.arange(len(contained)), contained, related)))):
        held, first = np.unique(groups[place[known]], return_index=True)
        own = groups[place[asked]]
        at = np.minimum(np.searchsorted(held, own), max(len(held) - 1, 0))
        if len(held):
            hit = held[at] == own
            kind[hit], partner[hit] = number, known[first[at[hit]]]
    return kind, partner


def _table(one: SpecimenSet, rows: np.ndarray, other: SpecimenSet, partners: np.ndarray, kind: np.ndarray) -> pa.Table:
    def take(specimens: SpecimenSet, column: str, where: np.ndarray) -> pa.ChunkedArray:
        return specimens.index[column].take(pa.array(where, pa.int64()))

    columns = {name: take(one, name, rows) for name in ("key", "split", "species")}
    columns |= {f"other_{name}": take(other, name, partners) for name in ("key", "split", "species")}
    how = pa.array(np.array(HOW, dtype=object)[kind] if len(kind) else [], pa.string())
    return pa.table({**columns, "how": how}).sort_by([("how", "ascending"), ("key", "ascending")])
