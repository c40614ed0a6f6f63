"""Checks of names: lineages that disagree, labels that are no binomials, barcodes and BINs under several species.

Legend: N specimens; a pair is a (species, BIN) that occurs.
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from engine.curation import Finding, SpecimenSet
from engine.specimens.names import NAME_TYPES, SPECIES_TYPES, name_type
from engine.specimens.taxonomy import RANKS, Taxonomy

GRADES = {
    "A": "more than 10 specimens, one BIN, which has no other species",
    "B": "3 to 10 specimens, one BIN, which has no other species",
    "C": "several BINs, none of which has another species",
    "D": "fewer than 3 specimens, no BIN with another species",
    "E": "a BIN that has another species",
}
"""BAGS (Fontes et al. 2021), over specimens with a BIN and a binomial. E is looked at first, then D, C, B, A."""
_LISTED = 5  # names or keys shown in one cell


def check_lineages(specimens: SpecimenSet) -> Finding:
    """Report names whose place in the taxonomy differs between specimens, as `Taxonomy.build` finds them."""
    taxonomy = Taxonomy.build({rank: specimens.index[rank] for rank in RANKS})
    rows: list[dict[str, Any]] = [
        {
            "kind": conflict.kind,
            "rank": conflict.rank,
            "name": conflict.name,
            "places": "; ".join(f"{name} ({count})" for name, count in conflict.counts),
            "taken": conflict.chosen,
            "specimens_against": sum(count for _, count in conflict.counts[1:]),
        }
        for conflict in taxonomy.conflicts
    ]
    rows.sort(key=lambda row: -row["specimens_against"])
    kinds = dict(Counter(row["kind"] for row in rows))
    meaning = (
        "One name under several parents of an order (training takes the majority's), or in several orders (kept as "
        "different taxa). Often a synonym, a spelling, or a specimen in the wrong family."
    )
    return Finding("lineages", "Lineage conflicts", len(rows), "names", meaning, _table(rows), {"by kind": kinds})


def check_names(specimens: SpecimenSet) -> Finding:
    """Report species labels that name no described species."""
    codes, names = specimens.codes("species")
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    rows: list[dict[str, Any]] = [
        {"name": name, "type": name_type(name), "specimens": count} for name, count in zip(names, counts, strict=True)
    ]
    facts = {
        kind: {
            "names": sum(row["type"] == kind for row in rows),
            "specimens": sum(row["specimens"] for row in rows if row["type"] == kind),
        }
        for kind in NAME_TYPES
    }
    found = sorted(
        (row for row in rows if row["type"] not in SPECIES_TYPES), key=lambda row: (-row["specimens"], row["name"])
    )
    meaning = (
        "Labels of their own type (specimens.names): a code or 'sp. X' may be one species, 'sp.' is many, a complex is "
        "several. Score binomials apart from them."
    )
    return Finding("names", "Species labels that are no binomials", len(found), "names", meaning, _table(found), facts)


def check_shared_barcodes(specimens: SpecimenSet) -> Finding:
    """Report letter-for-letter identical barcodes under different binomials."""
    species, names = specimens.codes("species")
    binomial = np.array([name_type(name) in SPECIES_TYPES for name in names] + [False])
    rows = np.flatnonzero((specimens.place >= 0) & binomial[species])
    place = specimens.place[rows]
    pairs, counts = np.unique(np.stack([place, species[rows]]), axis=1, return_counts=True)
    shared = np.bincount(pairs[0], minlength=len(specimens.unique)) > 1
    by_barcode: dict[int, list[tuple[int, str]]] = {}
    for column in np.flatnonzero(shared[pairs[0]]).tolist():
        by_barcode.setdefault(int(pairs[0, column]), []).append((int(counts[column]), names[pairs[1, column]]))
    first = dict(zip(place[::-1].tolist(), rows[::-1].tolist(), strict=True))
    found: list[dict[str, Any]] = []
    for number, held in by_barcode.items():
        held.sort(key=lambda item: (-item[0], item[1]))
        genera = {name.split()[0] for _, name in held}
        found.append(
            {
                "example": first[number],
                "species": "; ".join(f"{name} ({count})" for count, name in held),
                "num_species": len(held),
                "across_genera": len(genera) > 1,
                "specimens": sum(count for count, _ in held),
                "length": len(specimens.unique[number]),
            }
        )
    found.sort(key=lambda row: (not row["across_genera"], -row["specimens"], row["example"]))
    for row, key in zip(found, specimens.keys([row["example"] for row in found]), strict=True):
        row["example"] = key
    facts = {
        "specimens": sum(row["specimens"] for row in found),
        "barcodes across genera": sum(row["across_genera"] for row in found),
    }
    meaning = (
        "No method can tell these species apart by this barcode: true sharing between close species, a synonym, or a "
        "wrong name. Those across genera come first, they are mostly wrong names or renamed genera."
    )
    title = "Identical barcodes under different species"
    return Finding("shared_barcodes", title, len(found), "barcodes", meaning, _table(found), facts)


def check_bins(specimens: SpecimenSet) -> Finding:
    """Report species over several BINs and BINs under several species, graded as BAGS does (see GRADES)."""
    species, names = specimens.codes("species")
    bins, bin_names = specimens.codes("bin_uri")
    binomial = np.array([name_type(name) in SPECIES_TYPES for name in names] + [False])
    rows = (bins >= 0) & binomial[species]
    pairs, counts = np.unique(np.stack([species[rows], bins[rows]]), axis=1, return_counts=True)
    per_bin = np.bincount(pairs[1], minlength=len(bin_names))
    members: dict[int, list[int]] = {}
    for column, number in enumerate(pairs[1].tolist()):
        if per_bin[number] > 1:
            members.setdefault(number, []).append(int(pairs[0, column]))
    found = []
    edges = np.flatnonzero(np.diff(pairs[0], prepend=-1)).tolist()
    for start, end in zip(edges, [*edges, pairs.shape[1]][1:], strict=True):
        own, held = pairs[1, start:end].tolist(), counts[start:end]
        others = sorted({one for number in own for one in members.get(number, ())} - {int(pairs[0, start])})
        total = int(held.sum())
        found.append(
            {
                "species": names[pairs[0, start]],
                "grade": _grade(total, len(own), bool(others)),
                "specimens": total,
                "bins": "; ".join(
                    f"{bin_names[own[i]]} ({held[i]})" for i in np.argsort(-held, kind="stable")[:_LISTED]
                ),
                "num_bins": len(own),
                "other_species": "; ".join(names[one] for one in others[:_LISTED]),
                "num_other_species": len(others),
            }
        )
    grades = Counter(row["grade"] for row in found)
    found.sort(key=lambda row: ("ECDBA".index(row["grade"]), -row["specimens"], row["species"]))
    meaning = "BAGS grades, over specimens with a BIN and a binomial: " + "; ".join(
        f"{k} = {v}" for k, v in GRADES.items()
    )
    facts = {
        "grades": {grade: grades[grade] for grade in GRADES},
        "BINs with several species": int((per_bin > 1).sum()),
        "species in several BINs": sum(row["num_bins"] > 1 for row in found),
    }
    title = "BINs and species that do not match (BAGS C and E)"
    return Finding("bins", title, grades["C"] + grades["E"], "species", meaning + ".", _table(found), facts)


def _grade(specimens: int, num_bins: int, shared: bool) -> str:
    if shared:
        return "E"
    if specimens < 3:
        return "D"
    if num_bins > 1:
        return "C"
    return "A" if specimens > 10 else "B"


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows)
