"""Baselines on the same specimens: nearest by colour, shared 6-mers, exact alignment, the model's own features.

Each answers, rank by rank, with the label of the nearest training specimen that has one there. References and
queries go block against block, so memory does not grow with either.

Legend: N queries, M references, D dimensions, R ranks.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from engine.batches.pipeline import CpuBudget, label_columns
from engine.config import DataConfig
from engine.signals import barcodes, degrade, images, nucleotides
from engine.signals.damage import measured_barcodes
from engine.signals.nucleotides import kmer_known, kmer_numbers
from engine.specimens.taxonomy import Taxonomy
from engine.store.members import COLUMNS, Members
from train import reference
from train.evaluation.predict import Encoded, Encoding, encode_split, only
from train.reference import Library

log = logging.getLogger(__name__)

BLOCK = 4096
KMER = 6
BINS = 8  # of each colour channel
MAX_PAIRS = 6e8  # beyond that a quadratic baseline takes longer than the evaluation itself

Represent = Callable[[slice], np.ndarray]
"""Rows -> their unit features, float32 [n, D]."""


def nearest_labels(queries: tuple[int, Represent], references: tuple[int, Represent], labels: np.ndarray) -> np.ndarray:
    """Label, per rank, of the reference with the highest cosine among those that have one; the first of equals.

    Args:
        queries: (how many, rows -> features).
        references: the same of what is compared with.
        labels: int64 [M, R] of the references, -1 = unknown.

    Returns:
        int64 [N, R], -1 where no reference has a label.
    """
    best = np.full((queries[0], labels.shape[1]), -np.inf, dtype=np.float32)
    answer = np.full((queries[0], labels.shape[1]), -1, dtype=np.int64)
    blocks = range(0, references[0], BLOCK)
    for first in tqdm(blocks, desc="nearest neighbours", unit=" blocks", disable=None, leave=False):
        block = slice(first, min(references[0], first + BLOCK))
        library = references[1](block)
        known = [np.flatnonzero(labels[block, rank] >= 0) for rank in range(labels.shape[1])]
        for start in range(0, queries[0], BLOCK):
            rows = slice(start, min(queries[0], start + BLOCK))
            cosine = queries[1](rows) @ library.T
            for rank, columns in enumerate(known):
                if not len(columns):
                    continue
                mine = cosine if len(columns) == cosine.shape[1] else cosine[:, columns]
                place = mine.argmax(axis=1)
                score = mine[np.arange(len(mine)), place]
                better = score > best[rows, rank]
                best[rows, rank] = np.where(better, score, best[rows, rank])
                answer[rows, rank] = np.where(better, labels[block.start + columns[place], rank], answer[rows, rank])
    return answer


def kmer_features(sequences: Sequence[str]) -> np.ndarray:
    """Return counts of the 6-mers without N, of unit length: float32 [n, 4096]; zero rows for empty sequences."""
    size = 4**KMER
    counts = np.zeros((len(sequences), size), dtype=np.float32)
    for row, sequence in enumerate(sequences):
        codes = nucleotides.codes(sequence)
        counts[row] = np.bincount(kmer_numbers(codes, KMER)[kmer_known(codes, KMER)], minlength=size)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Joint histogram of a photo uint8 [S, S, 3], 8 bins a channel, square-rooted to unit length: float32 [512]."""
    counts = cv2.calcHist([image], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3).ravel()
    return np.sqrt(counts / counts.sum()).astype(np.float32)


def distinct(sequences: Sequence[str], labels: np.ndarray | None = None) -> tuple[list[int], np.ndarray]:
    """First row of each different sequence (and labels), and for every row which of these it equals, int64 [n]."""
    rows = sequences if labels is None else zip(sequences, map(tuple, labels.tolist()), strict=True)
    place: dict[object, int] = {}
    inverse = np.array([place.setdefault(row, len(place)) for row in rows], dtype=np.int64)
    first = np.unique(inverse, return_index=True)[1] if len(inverse) else inverse
    return first.tolist(), inverse


def kmer_peer(queries: Sequence[str], references: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """6-mer nearest neighbour: int64 [N, R]. Equal barcodes are compared once. `labels` int64 [M, R]."""
    asked, inverse = distinct(queries)
    kept, _ = distinct(references, labels)

    def represent(rows: list[int], sequences: Sequence[str]) -> tuple[int, Represent]:
        return len(rows), lambda block: kmer_features([sequences[row] for row in rows[block]])

    return nearest_labels(represent(asked, queries), represent(kept, references), labels[kept])[inverse]


def library_peer(queries: Sequence[str], references: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Return the nearest labelled reference by alignment (`train.reference`): int64 [N, R]; `labels` int64 [M, R]."""
    library = Library.build(pa.table({"key": pa.nulls(len(references), pa.string())}), references)
    return reference.nearest_labels(library, library.search(queries), labels)


def colour_features(index: pa.Table, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Colour histograms of all photos, clean and blurred as in the evaluation: float32 [N, 512] each; zeros without."""
    clean, noisy = (np.zeros((len(index), BINS**3), dtype=np.float32) for _ in range(2))
    members = Members()
    rows = index.select(["folder", *COLUMNS]).to_pylist()
    for row, at in enumerate(tqdm(rows, desc="colour histograms", unit=" photos", disable=None, leave=False)):
        try:
            photo = members.photo(at)
            pixels = images.decode(photo) if photo else None
        except (ValueError, OSError):  # named already by the pipeline
            continue
        if pixels is None:
            continue
        view = images.evaluation_view(pixels, data.image_size)
        clean[row] = colour_histogram(view)
        noisy[row] = colour_histogram(degrade.blur(view, data.degrade.blur_kernel))
    return clean, noisy


def degraded(keys: Sequence[str], sequences: Sequence[str], data: DataConfig) -> tuple[list[str], list[str]]:
    """Return the barcodes as the model meets them: clean, and damaged by the same draws."""
    clean = barcodes.orient_batch(sequences) if data.orient else list(sequences)
    return clean, measured_barcodes(clean, keys, 0, data.degrade, data.orient)


def _rows_of(features: np.ndarray) -> tuple[int, Represent]:
    return len(features), lambda block: features[block]


Answers = dict[str, dict[str, np.ndarray]]
"""Peer -> condition -> answered labels, int64 [N, R]; -1 = none."""


def image_peers(index: pa.Table, train: pa.Table, data: DataConfig, taxonomy: Taxonomy) -> Answers:
    """Colour-histogram nearest neighbour; {} when there are no photos."""
    train = only(train, "image")
    if not len(train) or not len(only(index, "image")) or _too_large(len(index), len(train), "colour histogram"):
        return {}
    labels = taxonomy.encode(label_columns(train))
    library, _ = colour_features(train, data)
    found = zip(("clean", "noisy"), colour_features(index, data), strict=True)
    answers = {name: nearest_labels(_rows_of(asked), _rows_of(library), labels) for name, asked in found}
    return {"image/colour_histogram": answers}


def dna_peers(
    model: Any,
    encoded: Encoded,
    queries: Sequence[str],
    train: tuple[pa.Table, Sequence[str]],
    setting: tuple[DataConfig, Taxonomy, int, CpuBudget | None],
) -> Answers:
    """Return the reference library, 6-mer and feature nearest neighbours; {} when there are no barcodes.

    The quadratic ones are left out where there are too many pairs.

    Args:
        model: in evaluation mode.
        encoded: the model's features of the queries.
        queries: their cleaned barcodes [N], "" = none.
        train: index and cleaned barcodes of the training split.
        setting: data configuration, taxonomy, batch size, CPU budget (None = this process).
    """
    data, taxonomy, batch_size, budget = setting
    present = np.array([bool(sequence) for sequence in train[1]], dtype=bool)
    index = train[0].filter(pa.array(present))
    if not len(index) or not encoded.has_dna.any():
        return {}
    references = [sequence for sequence in train[1] if sequence]
    labels = taxonomy.encode(label_columns(index))
    asked = dict(zip(("clean", "noisy"), degraded(encoded.keys, queries, data), strict=True))
    found = {"dna/reference_library": {name: library_peer(some, references, labels) for name, some in asked.items()}}
    if _too_large(len(queries), len(index), "6-mer"):
        return found
    library, _ = degraded([""] * len(references), references, data)
    by_kmer = {name: kmer_peer(some, library, labels) for name, some in asked.items()}
    device = next(model.parameters()).device
    known = encode_split(
        model,
        only(index, "dna"),
        taxonomy,
        data,
        Encoding(batch_size=batch_size, device=device, budget=budget, noisy=False),
    )
    by_feature = {
        condition: nearest_labels(_rows_of(encoded.features[part]), _rows_of(known.features["dna"]), labels)
        for condition, part in (("clean", "dna"), ("noisy", "dna_noisy"))
    }
    return found | {"dna/nearest_6mer": by_kmer, "dna/nearest_feature": by_feature}


def _too_large(queries: int, references: int, name: str) -> bool:
    if queries * references <= MAX_PAIRS:
        return False
    log.warning(
        "%s nearest neighbour left out: %d queries against %d references are more than %.0e comparisons",
        name,
        queries,
        references,
        MAX_PAIRS,
    )
    return True
