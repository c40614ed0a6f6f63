"""Exact alignment of a query with a few references: semi-global, so that fragments and overlapping ends cost nothing.

The reference is cut to where the query lies on it and, where the query reaches beyond an end, lengthened by N. N (in
either) matches every letter at no cost, so what overhangs and what is masked neither helps nor harms; letters known in
both are the overlap. The distance is the least number of substitutions, insertions and deletions (edlib: Myers'
bit-parallel algorithm, infix mode).

Legend: C references of one query.
"""

import re
from collections.abc import Sequence

import edlib
import numpy as np

_MARGIN = 48  # nucleotides by which the place on the reference may be wrong: three bins
_STEPS = re.compile(r"(\d+)([=XIDM])")
_ANY = [(letter, "N") for letter in "ACGT"]


def align(query: str, references: Sequence[str], shift: Sequence[int], slack: int) -> tuple[np.ndarray, np.ndarray]:
    """Align a query with references, the likeliest first.

    Args:
        query: clean barcode, oriented as the references.
        references: C clean barcodes.
        shift: [C], where the query begins on each, nucleotides, wrong by _MARGIN at most; negative = before it.
        slack: a reference that is farther than the nearest so far by more edits is given up.

    Returns:
        distance int64 [C], edits, -1 = given up; overlap int64 [C], letters of the reference beside the query, both of
        them known.
    """
    distance = np.full(len(references), -1)
    overlap = np.zeros(len(references), dtype=np.int64)
    bound = -1
    for number, (reference, begin) in enumerate(zip(references, shift, strict=True)):
        end = begin + len(query) + _MARGIN
        left = begin - _MARGIN
        window = "N" * max(0, -left) + reference[max(0, left) : max(0, end)] + "N" * max(0, end - len(reference))
        found = edlib.align(query, window, mode="HW", task="locations", k=bound, additionalEqualities=_ANY)
        if found["editDistance"] < 0:
            continue
        distance[number] = found["editDistance"]
        first, last = found["locations"][0]
        if "N" in query or "N" in window[first : last + 1].strip("N"):
            overlap[number] = known_in_both(query, window)
        else:
            overlap[number] = max(0, min(last + 1 + left, len(reference)) - max(first + left, 0))
        bound = distance[number] + slack if bound < 0 else min(bound, int(distance[number]) + slack)
    return distance, overlap


def known_in_both(query: str, window: str) -> int:
    """Count letters of a window that stand beside the query in its best alignment, both are known or one has a gap."""
    found = edlib.align(query, window, mode="HW", task="path", additionalEqualities=_ANY)
    place, at, count = 0, found["locations"][0][0], 0
    for size, kind in _STEPS.findall(found["cigar"]):
        length = int(size)
        here, there = query[place : place + length], window[at : at + length]
        if kind == "I":  # a letter of the query only
            place += length
        elif kind == "D":
            at += length
            count += length - there.count("N")
        else:
            count += sum(one != "N" and other != "N" for one, other in zip(here, there, strict=True))
            place, at = place + length, at + length
    return count
