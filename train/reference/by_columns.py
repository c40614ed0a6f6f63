"""Queries on COI's columns: place them, scan all references that stand there, choose and rank the nearest.

Legend: Q queries, S slots, C clusters, K candidates or hits of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.signals.columns import WORDS, encode
from engine.signals.placing import KMER, MIN_SHARE_OF_VOTES, MIN_VOTES
from train.reference import search
from train.reference.finish import finish
from train.reference.scan import CANDIDATES, EDIT, STEP, packed_words, scan, survey
from train.reference.search import NONE, Found, SearchOptions, Targets

_FIRST = 64  # steps of clusters that are scored at once
_GAPPED = 2 * EDIT  # by how much the differences on columns of a query with gaps may be wrong
_NAMED = 8  # edits by which the nearest reference with a species may be farther and is still sure to be found
SUSPECT = 0.12  # differences per known letter from which references without columns are searched, too
_MOSTLY = 0.8  # of a query's letters must stand on columns,
_ENOUGH = 300  # or as many


@dataclass(frozen=True)
class Compared:
    """What a query found on columns, and whether a reference that stands on none may be nearer."""

    found: Found
    open: bool


def find(queries: Sequence[str], targets: Targets, options: SearchOptions, without: np.ndarray) -> list[Compared]:
    """Search the references that stand on columns. `without` int64 [Q] as of `search`."""
    planes = targets.planes
    codes, starts = encode(queries)
    placed = planes.placer.place_codes(codes, starts)
    known, number = placed.known, len(queries)
    packed, count = np.zeros((number, WORDS, 4), dtype=np.uint64), np.zeros(number, dtype=np.int64)
    packed_words(placed.planes, packed, count)
    clusters = len(planes.begin) - 1
    sizes = (clusters, clusters, -(-clusters // STEP), -(-clusters // STEP))
    surveyed = tuple(np.empty((number, size), dtype=np.uint8) for size in sizes)
    survey(placed.planes, planes.shared, surveyed)
    kept = (np.empty((number, CANDIDATES, 3), dtype=np.int32), np.zeros(number, np.int64), np.zeros(number, np.int64))
    least = np.minimum(search.MIN_OVERLAP, np.ceil(search.MIN_SHARE * known)).astype(np.int64)
    margin = np.where(placed.gaps > 0, _GAPPED, 0)
    scan(
        (packed, count),
        (planes.planes, planes.begin, targets.slot_group),
        surveyed,
        (known, np.maximum(least, 1), margin, without, _FIRST, _NAMED),
        kept,
    )
    width = options.nearest + options.others
    out = (
        np.empty((number, width), np.int64),
        np.empty((number, width), np.int64),
        np.empty((number, width), np.int64),
        np.empty((number, width)),
        np.zeros(number, np.int64),
    )
    finish(
        kept,
        (codes, starts, placed.strand, placed.first, placed.gaps, known),
        (
            targets.letters,
            targets.starts,
            planes.reference,
            planes.first,
            planes.turned,
            planes.gaps,
            targets.slot_group,
        ),
        (options.nearest, options.others, options.slack, options.other_slack, search.UNCOVERED),
        out,
    )
    fits = (placed.beyond <= (1 - _MOSTLY) * (known + placed.beyond)) | (known >= _ENOUGH)
    fits &= placed.strand != 0
    proven = fits & (placed.gaps == 0) & (placed.beyond == 0)
    return [
        _compared(
            out,
            kept[2],
            row,
            (int(strand), bool(fits[row]), bool(proven[row]), int(placed.votes[row])),
            (int(known[row]), len(planes.rest) > 0),
        )
        for row, strand in enumerate(placed.strand.tolist())
    ]


def _compared(
    out: tuple[np.ndarray, ...],
    limit: np.ndarray,
    row: int,
    place: tuple[int, bool, bool, int],
    others: tuple[int, bool],
) -> Compared:
    """One query's hits, and what they prove."""
    (strand, fits, proven, votes), (known, rest) = place, others
    count = int(out[4][row])
    if not count or not fits:
        return Compared(NONE, rest)
    reference, distance, overlap, difference = (part[row, :count].copy() for part in out[:4])
    least = float(difference[0])
    # A reference nearer than this shares all but KMER k-mers an edit, would be placed by them, and so is on columns.
    seen = votes - KMER * least >= max(MIN_VOTES, MIN_SHARE_OF_VOTES * known) or not rest
    exact = proven and seen and EDIT * least <= limit[row]
    return Compared(Found(reference, distance, overlap, difference, strand, exact), rest and least > SUSPECT * known)


def joined(own: Compared, other: Found) -> Compared:
    """Join the hits of both ways if they read the query on one strand; else take the nearer ones."""
    one = own.found
    if not len(other.reference):
        return own
    if not len(one.reference):
        return Compared(other, own.open)
    if one.strand != other.strand:
        nearer = one if one.least <= other.least else other
        return Compared(replace(nearer, exact=False), own.open)
    reference = np.concatenate([one.reference, other.reference])
    _, first = np.unique(reference, return_index=True)
    parts = [
        np.concatenate(pair)[first]
        for pair in (
            (one.reference, other.reference),
            (one.distance, other.distance),
            (one.overlap, other.overlap),
            (one.difference, other.difference),
        )
    ]
    order = np.lexsort((parts[0], parts[3]))
    return Compared(Found(*(part[order] for part in parts), one.strand, one.exact), own.open)
