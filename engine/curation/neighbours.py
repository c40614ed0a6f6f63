"""The nearest other barcodes of every barcode, by k-mers: exact for small sets, by cells of like barcodes for large.

Counts of 5-mers, projected on their 96 main directions, choose the 24 likeliest neighbours of a barcode among its own
cell and the 8 cells nearest to it (all barcodes up to 20,000: exact in the projection); the share of 7-mers in common,
of the barcode that has fewer, gives their distance. Limits: a neighbour in a farther cell is missed; a species with
more than 24 different barcodes crowds out what is farther away; a fragment is compared by what it has.

Legend: U different barcodes, K neighbours of each, D = 96 directions, C cells.
"""

import functools
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from engine.signals.nucleotides import code_rows, kmer_known, kmer_numbers

K = 24
EXACT = 20_000  # different barcodes up to which there is one cell
_DIRECTIONS = 96
_CELL = 300  # barcodes per cell, on average
_PROBES = 8
_KEPT = 256  # cells whose 7-mers are kept while near cells are looked at: about 160 MB
_SAMPLE = 20_000
_MOST_LETTERS = 2000  # of a barcode are looked at: COI has 1,540, a mitogenome would only cost
_COARSE, _FINE = 5, 7  # lengths of k-mers


def nearest(sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the neighbours of clean, oriented, different barcodes: places int64 [U, K] (-1 = none) and distances.

    Distances float32 [U, K] are estimated shares of differing nucleotides: 1 - s**(1/7) of the share s of 7-mers in
    common.
    """
    sequences = [sequence[:_MOST_LETTERS] for sequence in sequences]
    features = _features(sequences)
    cells, members, tour = _cells(features)
    places = np.full((len(sequences), K), -1, dtype=np.int64)
    distances = np.ones((len(sequences), K), dtype=np.float32)
    bits_of = functools.lru_cache(_KEPT)(lambda cell: _bits([sequences[number] for number in members[cell].tolist()]))
    with tqdm(total=len(sequences), desc="nearest barcodes", unit="barcode", disable=None) as progress:
        for cell in tour:
            own, around = members[cell], cells[cell].tolist()
            candidates = np.concatenate([members[one] for one in around])
            bits = np.concatenate([bits_of(one) for one in around])
            where = np.searchsorted(candidates, own) if len(around) == 1 else np.arange(len(own))
            for start in range(0, len(own), 1024):
                rows = own[start : start + 1024]
                chosen = _likeliest(features, rows, candidates)
                shared = _distance(bits, where[start : start + 1024], chosen)
                order = np.argsort(shared, axis=1, kind="stable")
                width = chosen.shape[1]
                places[rows, :width] = np.take_along_axis(candidates[chosen], order, axis=1)
                distances[rows, :width] = np.take_along_axis(shared, order, axis=1)
                progress.update(len(rows))
    return places, distances


def _kmers(sequences: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and number (0 .. 4**length - 1) of every window without N: two int64 arrays."""
    codes = code_rows(sequences, max(map(len, sequences)))
    row, at = np.nonzero(kmer_known(codes, length))
    return row, kmer_numbers(codes, length)[row, at].astype(np.int64)


def _counts(sequences: Sequence[str]) -> np.ndarray:
    """float32 [B, 4**5]: square roots of the counts, unit norm."""
    row, number = _kmers(sequences, _COARSE)
    size = 4**_COARSE
    counts = np.bincount(row * size + number, minlength=len(sequences) * size).reshape(-1, size).astype(np.float32)
    counts = np.sqrt(counts)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def _features(sequences: Sequence[str]) -> np.ndarray:
    """float32 [U, D]: counts on the main directions of a sample."""
    rng = np.random.Generator(np.random.PCG64(0))
    chosen = rng.permutation(len(sequences))[:_SAMPLE].tolist()
    sample = np.concatenate(
        [_counts([sequences[i] for i in chosen[s : s + 2048]]) for s in range(0, len(chosen), 2048)]
    )
    mean = sample.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(sample - mean, rowvar=False) if len(sample) > 1 else np.eye(len(mean)))
    basis = np.ascontiguousarray(vectors[:, ::-1][:, :_DIRECTIONS], dtype=np.float32)
    result = np.empty((len(sequences), _DIRECTIONS), dtype=np.float32)
    for start in tqdm(range(0, len(sequences), 2048), desc="k-mers", unit="batch", disable=None):
        result[start : start + 2048] = (_counts(sequences[start : start + 2048]) - mean) @ basis
    return result


def _cells(features: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """Return the cells to look into for each cell (int64 [C, probes], itself first), their members, and a tour.

    Members ascend; in the tour of all cells near ones follow each other.
    """
    if len(features) <= EXACT:
        return np.zeros((1, 1), dtype=np.int64), [np.arange(len(features))], [0]
    rng = np.random.Generator(np.random.PCG64(1))
    count = len(features) // _CELL
    sample = features[rng.permutation(len(features))[: 30 * count]]
    centres = sample[:count].copy()
    for _ in range(5):
        cell = _closest(sample, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, cell, sample)
        size = np.bincount(cell, minlength=count)[:, None]
        centres = np.where(size > 0, sums / np.maximum(size, 1), centres)
    cell = _closest(features, centres)
    order = np.argsort(cell, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(cell, minlength=count))[:-1])
    distance = (centres**2).sum(axis=1)[None] - 2 * centres @ centres.T
    np.fill_diagonal(distance, -np.inf)
    around = np.argpartition(distance, min(_PROBES, count - 1), axis=1)[:, : _PROBES + 1]
    around = np.take_along_axis(around, np.argsort(np.take_along_axis(distance, around, 1), axis=1, kind="stable"), 1)
    return around, members, _tour(distance)


def _tour(distance: np.ndarray) -> list[int]:
    """Visit the nearest cell that was not visited, again and again. `distance` [C, C] is used up."""
    tour = [0]
    for _ in range(len(distance) - 1):
        distance[:, tour[-1]] = np.inf
        tour.append(int(distance[tour[-1]].argmin()))
    return tour


def _closest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    norms = (centres**2).sum(axis=1)
    parts = [(norms - 2 * rows[s : s + 8192] @ centres.T).argmin(axis=1) for s in range(0, len(rows), 8192)]
    return np.concatenate(parts)


def _likeliest(features: np.ndarray, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Places among the candidates of those nearest in the projection, without the row itself: int64 [rows, <= K]."""
    others = features[candidates]
    distance = (others**2).sum(axis=1) - 2 * features[rows] @ others.T
    distance[rows[:, None] == candidates] = np.inf
    count = min(K, len(candidates) - 1)
    return np.argpartition(distance, max(count - 1, 0), axis=1)[:, :count]


def _bits(sequences: Sequence[str]) -> np.ndarray:
    """uint64 [B, 4**7 / 64]: which 7-mers occur."""
    result = np.zeros((len(sequences), 4**_FINE // 8), dtype=np.uint8)
    for start in range(0, len(sequences), 1024):
        row, number = _kmers(sequences[start : start + 1024], _FINE)
        dense = np.zeros((len(sequences[start : start + 1024]), 4**_FINE), dtype=bool)
        dense[row, number] = True
        result[start : start + 1024] = np.packbits(dense, axis=1)
    return result.view(np.uint64)


def _distance(bits: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float32 [rows, K] between barcodes by their places in `bits`."""
    sizes = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    shared = np.empty(others.shape, dtype=np.int64)
    for column in range(others.shape[1]):
        shared[:, column] = np.bitwise_count(bits[rows] & bits[others[:, column]]).sum(axis=1, dtype=np.int64)
    share = shared / np.maximum(np.minimum(sizes[rows][:, None], sizes[others]), 1)
    return (1 - share ** (1 / _FINE)).astype(np.float32)
