"""Which species of a library can be kept apart by their barcodes: the nearest reference of another species."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.specimens.taxonomy import RANKS
from train.reference.library import Library
from train.reference.search import Hits

ASKED = 10  # barcodes of a species that are compared
_SPECIES = RANKS.index("species")


@dataclass(frozen=True)
class Apart:
    """How a name stands in a library."""

    name: str
    references: int  # specimens with a barcode; 0 = the library does not know the name as a species
    barcodes: int  # different ones
    other: str | None  # the nearest other species; None = none was found near
    distance: float | None  # share of aligned nucleotides that differ from its nearest reference
    is_apart: bool | None  # no reference of another species has one of its barcodes; None = no reference


def apart(library: Library, names: Sequence[str], threads: int = 1) -> list[Apart]:
    """Return how each name stands in a library, in their order; of a species ASKED barcodes at most are compared."""
    known = {name: taxon for taxon, name in enumerate(library.taxonomy.names[_SPECIES])}
    haplotype, species = library.records["haplotype"].to_numpy(), library.labels[:, _SPECIES]
    rows = np.flatnonzero((haplotype >= 0) & (species >= 0))
    rows = rows[np.argsort(species[rows], kind="stable")]
    begin = np.searchsorted(species[rows], np.arange(len(known) + 1))
    held = {name: rows[begin[known[name]] : begin[known[name] + 1]] for name in names if name in known}
    different = {name: np.unique(haplotype[each]) for name, each in held.items()}
    asked = [(name, number) for name, each in different.items() for number in each[:ASKED].tolist()]
    queries, without = [library.barcode(number) for _, number in asked], [known[name] for name, _ in asked]
    hits = library.search(queries, threads=threads, without=without)
    nearest: dict[str, tuple[float, str]] = {}
    for place, (name, _) in enumerate(asked):
        if (found := _nearest(library, hits, place, known[name])) is not None:
            nearest[name] = min(nearest.get(name, found), found)
    for name, each in different.items():  # a search without a species passes over barcodes that it shares
        if shared := [other for number in each.tolist() for other in _others(library, number, known[name])]:
            nearest[name] = (0.0, min(shared))
    result = []
    for name in names:
        distance, other = nearest.get(name, (None, None))
        references = len(held.get(name, ()))
        told = None if not references else distance is None or distance > 0
        result.append(Apart(name, references, len(different.get(name, ())), other, distance, told))
    return result


def _nearest(library: Library, hits: Hits, place: int, own: int) -> tuple[float, str] | None:
    """Return distance and name of the nearest reference of another species."""
    for hit in range(hits.start[place], hits.start[place + 1]):
        if others := _others(library, hits.reference[hit], own):
            return float(1.0 - hits.identity[hit]), others[0]
    return None


def _others(library: Library, haplotype: int, own: int) -> list[str]:
    """Return the other species that have a barcode, sorted."""
    rows, begin = library.rows_of
    taxa = library.labels[rows[begin[haplotype] : begin[haplotype + 1]], _SPECIES]
    return sorted(library.taxonomy.names[_SPECIES][taxon] for taxon in set(taxa.tolist()) - {own, -1})
