"""Queries on COI's columns: place them, scan all references that stand there, choose and rank the nearest.

Legend: Q queries, S slots, C clusters, K candidates or hits of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.signals.columns import WORDS, Placed, encode
from engine.signals.placing import HIGH, KMER, KNOWN, LOW, MARGIN, MIN_SHARE_OF_VOTES, MIN_VOTES
from train.reference import search
from train.reference.finish import finish, nearest_slots
from train.reference.general import ranked
from train.reference.scan import CANDIDATES, EDIT, STEP, packed_words, scan, survey
from train.reference.search import NONE, Found, SearchOptions, Targets

Kept = tuple[np.ndarray, np.ndarray, np.ndarray]  # of `scan`
_TURNS = 2  # times that queries are placed anew and scanned again
_CLEAR = 0.6  # of the k-mers must speak for a place; else a path over all letters is sought
_DOUBTFUL = 3  # differences from the nearest reference from which a path beside it is sought
_FIRST = 64  # steps of clusters that are scored at once
_GAPPED = 2 * EDIT  # by how much the differences on columns of a query with gaps may be wrong
_NAMED = 8  # edits by which the nearest reference with a species may be farther and is still sure to be found
SUSPECT = 0.12  # differences per known letter from which references without columns are searched, too


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
    number, length = len(queries), np.diff(starts)
    unclear = (placed.gaps > 0) | (placed.votes < _CLEAR * (length - KMER))
    rows = np.flatnonzero((placed.strand != 0) & unclear)
    planes.placer.replace((codes, starts), placed, rows, np.zeros((len(rows), WORDS, 3), dtype=np.uint64))
    kept = _scanned(placed, np.arange(number), targets, without)
    for _ in range(_TURNS):
        rows = _straightened((codes, starts), placed, kept, targets)
        if not len(rows):
            break
        for whole, part in zip(kept, _scanned(placed, rows, targets, without), strict=True):
            whole[rows] = part
    known = placed.known
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
    fits = placed.strand != 0
    longer = placed.beyond > MARGIN  # than the columns: of the rest some may cover more
    proven = fits & (placed.gaps == 0) & (placed.beyond == 0)
    return [
        _compared(
            out,
            kept[2],
            row,
            (int(strand), bool(fits[row]), bool(proven[row]), int(placed.votes[row])),
            (int(known[row]), len(planes.rest) > 0, bool(longer[row])),
        )
        for row, strand in enumerate(placed.strand.tolist())
    ]


def _scanned(placed: Placed, rows: np.ndarray, targets: Targets, without: np.ndarray) -> Kept:
    """Scan for some of the queries, int64 [n]; return what `scan` keeps of each."""
    planes, number = targets.planes, len(rows)
    own, known = np.ascontiguousarray(placed.planes[rows]), placed.known[rows]
    packed, count = np.zeros((number, WORDS, 4), dtype=np.uint64), np.zeros(number, dtype=np.int64)
    packed_words(own, packed, count)
    clusters = len(planes.begin) - 1
    sizes = (clusters, clusters, -(-clusters // STEP), -(-clusters // STEP))
    surveyed = tuple(np.empty((number, size), dtype=np.uint8) for size in sizes)
    survey(own, planes.shared, surveyed)
    kept = (np.empty((number, CANDIDATES, 3), dtype=np.int32), np.zeros(number, np.int64), np.zeros(number, np.int64))
    length = known + placed.beyond[rows]
    least = np.minimum(search.MIN_OVERLAP, np.ceil(search.MIN_SHARE * length)).astype(np.int64)
    margin = np.where(placed.gaps[rows] > 0, _GAPPED, 0)
    scan(
        (packed, count),
        (planes.planes, planes.begin, targets.slot_group),
        surveyed,
        (known, np.maximum(least, 1), margin, without[rows], _FIRST, _NAMED),
        kept,
    )
    return kept


def _straightened(queries: tuple[np.ndarray, np.ndarray], placed: Placed, kept: Kept, targets: Targets) -> np.ndarray:
    """Place queries anew along the nearest reference, where that lessens the edits; return which, int64 [n]."""
    slots = np.full(len(placed.strand), -1)
    nearest_slots(kept[0], kept[1], placed.known, search.UNCOVERED, slots)
    rows = np.flatnonzero(slots >= 0)
    beside = targets.planes.planes[slots[rows]]
    before = _unlike(placed.planes[rows], beside) + placed.gaps[rows]
    doubtful = before >= _DOUBTFUL
    rows, beside, before = rows[doubtful], beside[doubtful], before[doubtful]
    old = [part[rows] for part in placed.moving]
    targets.planes.placer.replace(queries, placed, rows, beside)
    worse = _unlike(placed.planes[rows], beside) + placed.gaps[rows] >= before
    for part, was in zip(placed.moving, old, strict=True):
        part[rows[worse]] = was[worse]
    return rows[~worse]


def _unlike(planes: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Count differences, uint64 [n, 3, W] beside [n, W, 3], and what only the latter leaves open as a twentieth."""
    other = beside.transpose(0, 2, 1)
    differ = (planes[:, LOW] ^ other[:, LOW]) | (planes[:, HIGH] ^ other[:, HIGH])
    unlike = np.bitwise_count(differ & planes[:, KNOWN] & other[:, KNOWN]).sum(axis=1, dtype=np.int64)
    return unlike + np.bitwise_count(planes[:, KNOWN] & ~other[:, KNOWN]).sum(axis=1, dtype=np.int64) / EDIT


def _compared(
    out: tuple[np.ndarray, ...],
    limit: np.ndarray,
    row: int,
    place: tuple[int, bool, bool, int],
    others: tuple[int, bool, bool],
) -> Compared:
    """One query's hits, and what they prove."""
    (strand, fits, proven, votes), (known, rest, longer) = place, others
    count = int(out[4][row])
    if not count or not fits:
        return Compared(NONE, rest)
    reference, distance, overlap, difference = (part[row, :count].copy() for part in out[:4])
    least = float(difference[0])
    # A reference nearer than this shares all but KMER k-mers an edit, would be placed by them, and so is on columns.
    seen = votes - KMER * least >= max(MIN_VOTES, MIN_SHARE_OF_VOTES * known) or not rest
    exact = proven and seen and EDIT * least <= limit[row]
    return Compared(
        Found(reference, distance, overlap, difference, strand, exact), rest and (longer or least > SUSPECT * known)
    )


def joined(own: Compared, other: Found, length: int) -> Compared:
    """Join the hits of both ways if they read the query on one strand; else take the nearer ones.

    `length`: known letters of the query, those beyond the columns, too.
    """
    one = own.found
    if not len(other.reference):
        return own
    if not len(one.reference):
        return Compared(other, own.open)
    if one.strand != other.strand:
        nearer = one if one.least <= other.least else other
        return Compared(replace(nearer, exact=False), own.open)
    reference = np.concatenate([other.reference, one.reference])
    reference, first = np.unique(reference, return_index=True)
    distance = np.concatenate([other.distance, one.distance])[first]
    overlap = np.concatenate([other.overlap, one.overlap])[first]
    difference = ranked(distance, overlap, length)
    order = np.lexsort((reference, difference))
    parts = (part[order] for part in (reference, distance, overlap, difference))
    return Compared(Found(*parts, one.strand, one.exact), own.open)
