"""The same evidence on both sides: barcodes (identical, contained, overlapping) between splits and between sets.

Legend: asked rows are looked for among known rows.
"""

from collections import Counter

import numpy as np
import pyarrow as pa

from engine.curation import Finding, SpecimenSet
from engine.relations.containment import MIN_OVERLAP, RELATIONS, related_groups, relations

QUERIES = ("val", "test", "val_unseen", "test_unseen")
"""Splits that are asked about; what they share with any other split, or with another set, is a leak."""

HOW = (*RELATIONS, "chain")
_CHAIN = HOW.index("chain")


def check_split_leaks(specimens: SpecimenSet) -> Finding:
    """Report specimens of query splits whose barcode another split of the same set has, in whole or in part."""
    place, groups = specimens.place, related_groups(specimens.unique)
    split, names = specimens.codes("split")
    is_query = np.isin(split, [code for code, name in enumerate(names) if name in QUERIES])
    rows, kinds, partners = [], [], []
    for code, name in enumerate(names):
        if name not in QUERIES:
            continue
        asked = np.flatnonzero((place >= 0) & (split == code))
        known = np.flatnonzero((place >= 0) & (split != code) & (~is_query | (split < code)))  # a pair of queries once
        kind, partner = _relate(specimens, asked, specimens, known)
        _add_chains(kind, partner, groups[place[asked]], groups[place[known]], known)
        found = kind > 0
        rows.append(asked[found])
        kinds.append(kind[found])
        partners.append(partner[found])
    row, kind, partner = (np.concatenate([np.empty(0, dtype=np.int64), *parts]) for parts in (rows, kinds, partners))
    table = _table(specimens, row, specimens, partner, kind)
    by_pair = Counter(
        zip(table["split"].to_pylist(), table["other_split"].to_pylist(), table["how"].to_pylist(), strict=True)
    )
    facts = {f"{asked} in {other}, {how}": count for (asked, other, how), count in sorted(by_pair.items())}
    meaning = (
        "Their barcode stands in another split too: letter for letter (identical), one inside the other (contained), "
        f"or the end of one is the beginning of the other over {MIN_OVERLAP} nucleotides or more (overlap): scores of "
        "these specimens measure memory. Not counted: chain, related only through barcodes between them."
    )
    title = "Barcodes that cross splits"
    return Finding("split_leaks", title, int((kind != _CHAIN).sum()), "specimens", meaning, table, facts)


def check_set_leaks(one: SpecimenSet, other: SpecimenSet) -> Finding:
    """Report specimens of one set whose barcode another set has. Which split each is in decides whether it matters."""
    asked, known = np.flatnonzero(one.place >= 0), np.flatnonzero(other.place >= 0)
    kind, partner = _relate(one, asked, other, known)
    found = kind > 0
    table = _table(one, asked[found], other, partner[found], kind[found])
    by_pair = Counter(zip(table["split"].to_pylist(), table["other_split"].to_pylist(), strict=True))
    facts: dict[str, object] = {"specimens with a barcode": len(asked), "how": dict(Counter(table["how"].to_pylist()))}
    facts |= {f"{asked_split} in {other_split}": n for (asked_split, other_split), n in sorted(by_pair.items())}
    meaning = (
        f"Specimens of {one.name} whose barcode {other.name} has too: train on one and test on the other without them."
    )
    title = f"Barcodes of {one.name} in {other.name}"
    return Finding("set_leaks", title, int(found.sum()), "specimens", meaning, table, facts, of_set=one.name)


def _relate(
    one: SpecimenSet, asked: np.ndarray, other: SpecimenSet, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per asked row the closest relation to a known row (a position in HOW), and that row (-1 = none)."""
    numbers, inverse = np.unique(one.place[asked], return_inverse=True)
    held, first = np.unique(other.place[known], return_index=True)
    kind, partner = relations([one.unique[i] for i in numbers.tolist()], [other.unique[i] for i in held.tolist()])
    rows = np.append(known[first], -1)[partner]
    return kind[inverse], rows[inverse]


def _add_chains(kind: np.ndarray, partner: np.ndarray, own: np.ndarray, groups: np.ndarray, known: np.ndarray) -> None:
    """Mark, in place, rows without a direct relation whose group [asked] is among those of the known rows."""
    held, first = np.unique(groups, return_index=True)
    if len(held):
        at = np.minimum(np.searchsorted(held, own), len(held) - 1)
        chained = (kind == 0) & (held[at] == own)
        kind[chained], partner[chained] = _CHAIN, known[first[at[chained]]]


def _table(one: SpecimenSet, rows: np.ndarray, other: SpecimenSet, partners: np.ndarray, kind: np.ndarray) -> pa.Table:
    def take(specimens: SpecimenSet, column: str, where: np.ndarray) -> pa.ChunkedArray:
        return specimens.index[column].take(pa.array(where, pa.int64()))

    columns = {name: take(one, name, rows) for name in ("key", "split", "species")}
    columns |= {f"other_{name}": take(other, name, partners) for name in ("key", "split", "species")}
    how = pa.array(np.array(HOW, dtype=object)[kind] if len(kind) else [], pa.string())
    return pa.table({**columns, "how": how}).sort_by([("how", "ascending"), ("key", "ascending")])
