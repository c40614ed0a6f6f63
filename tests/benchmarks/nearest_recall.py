"""How often is the reference that the search gives as near as any: an oracle aligns every query with every reference.

    python -m tests.benchmarks.nearest_recall BARCODES.parquet [--keep LIBRARY] [--queries 200] [--conditions whole ...]

The oracle is edlib alone: least `difference` over all references on the strand that the search found (a letter that a
reference does not know costs UNCOVERED and the query's own rate). A reference is given up as soon as its edits exceed
the least difference so far; the search's own first hit, aligned alike, is where that begins. Printed: recall (the first
hit is within half a thousandth edit of the oracle's), recall within half an edit, both for all answers and for those
that are `exact`.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import edlib
import numpy as np

from engine.signals.barcodes import reverse_complement
from tests.benchmarks.nearest_accuracy import open_library
from tests.benchmarks.nearest_queries import CONDITIONS, damaged, named, read
from train.reference import Library
from train.reference.align import known_in_both
from train.reference.search import MIN_OVERLAP, MIN_SHARE, UNCOVERED

_ANY = [(letter, "N") for letter in "ACGT"]
_HANG = 60  # letters by which a query may reach beyond a reference that is long enough for it


def aligned(query: str, reference: str, most: int) -> tuple[int, int]:
    """Least edits between a whole query and a part of a reference, and letters known in both; -1 = more than `most`."""
    hang = max(_HANG, len(query) - len(reference) + _HANG)
    window = "N" * hang + reference + "N" * hang
    edits = edlib.align(query, window, mode="HW", task="distance", k=most, additionalEqualities=_ANY)["editDistance"]
    return edits, known_in_both(query, window) if edits >= 0 else 0


def nearest(query: str, references: Sequence[str], bound: float) -> float:
    """The least difference of a query from any reference, as far as it is below `bound` or equal."""
    known = len(query) - query.count("N")
    least = min(MIN_OVERLAP, MIN_SHARE * known)
    found = []
    for reference in references:
        edits, overlap = aligned(query, reference, int(bound))
        if edits >= 0 and overlap >= least:
            found.append((edits, overlap))
            bound = min(bound, edits + (UNCOVERED + edits / overlap) * max(0, known - overlap))
    return differences(found, known).min(initial=np.inf)


def differences(found: Sequence[tuple[int, int]], known: int) -> np.ndarray:
    """`difference` of (edits, overlap) pairs."""
    edits, overlap = np.array(found, dtype=float).reshape(-1, 2).T
    wide = overlap >= 0.9 * overlap.max(initial=0)
    rate = (edits[wide] / np.maximum(overlap[wide], 1)).min(initial=1)
    return edits + (UNCOVERED + rate) * np.maximum(0, known - overlap)


_LIBRARY: list[str] = []


def judged(task: tuple[str, str]) -> tuple[float, float]:
    """The difference of the reference that was found, and the oracle's; a process's references are in _LIBRARY."""
    query, hit = task
    known = len(query) - query.count("N")
    own = differences([aligned(query, hit, len(query))], known)[0] if hit else np.inf
    return float(own), float(min(own, nearest(query, _LIBRARY, min(own, 0.3 * len(query)))))


def tasks(library: Library, queries: Sequence[str]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Queries on the strand that was searched with their first hits, and which answers are exact."""
    hits = library.search(queries)
    given = []
    for row, query in enumerate(queries):
        some = hits.start[row + 1] > hits.start[row]
        hit = library.barcode(int(hits.reference[hits.start[row]])) if some else ""
        given.append((query if hits.strand[row] > 0 else reverse_complement(query), hit))
    return given, hits.exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("barcodes", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS)
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    kept = options.keep is not None and options.keep.exists()
    library = open_library(None if kept else read(options.barcodes, "train"), options.keep)
    _LIBRARY.extend(library.barcode(number) for number in range(library.num_haplotypes))
    queries = named(read(options.barcodes, options.split), options.queries, options.first)
    print(
        "| query | n | recall, % | within 0.5 edits, % | exact answers, % | recall of these, % |\n" + "|---" * 6 + "|"
    )
    for condition in options.conditions:
        given, exact = tasks(library, damaged(queries, condition, options.seed))
        with ProcessPoolExecutor(options.workers) as pool:
            own, least = np.array(list(pool.map(judged, given, chunksize=4))).T
        same, close = own <= least + 0.0005, own <= least + 0.5
        sure = f"{100 * same[exact].mean():.1f}" if exact.any() else ""
        print(
            f"| {condition} | {len(given)} | {100 * same.mean():.1f} | {100 * close.mean():.1f} | "
            f"{100 * exact.mean():.1f} | {sure} |",
            flush=True,
        )
        for row in np.flatnonzero(~close)[:5]:
            print(f"  query {row}: {own[row]:.2f}, oracle {least[row]:.2f}, exact {exact[row]}", flush=True)


if __name__ == "__main__":
    main()
