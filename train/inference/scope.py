"""The scope of a model: barcodes of what it knows, kept in its calibration, so that it knows what is far from them.

A model's cosines do not tell a barcode of another order from a damaged one of its own: with one order known, 23.9% of
bold's other orders were named Lepidoptera (results/pool.md). The edits to the nearest barcode of the scope do, also
where no library is served. They are evidence for the rules and caps alone: no taxon is named by them.

Legend: N queries, M records, H barcodes, R ranks.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from engine.specimens.taxonomy import RANKS, Taxonomy
from train.inference.calibration import Scope
from train.inference.evidence import Answers
from train.inference.nearest import Combiner, Nearest
from train.reference import Library

MOST = 5000  # barcodes kept: 3.3 MB, and a search of a millisecond


def choose(library: Library, taxonomy: Taxonomy, most: int = MOST) -> Scope:
    """Choose barcodes of a library: of every family, then genus, then species one; then second ones, and so on.

    Those without a species come last.

    Args:
        library: barcodes of what the model was trained with.
        taxonomy: the model's; records of which it knows no taxon are left out.
        most: barcodes kept.
    """
    rows, begin = library.rows_of
    labels = taxonomy.encode({rank: library.names[rank].take(pa.array(rows[begin[:-1]])) for rank in RANKS})
    known = np.flatnonzero((labels >= 0).any(axis=1))
    often = known[np.argsort(-np.diff(begin)[known], kind="stable")]
    family, genus, species = (_place(labels[often, RANKS.index(rank)]) for rank in ("family", "genus", "species"))
    nameless = labels[often, -1] < 0
    chosen = np.sort(often[np.lexsort((species, nameless, genus > 0, family > 0))[:most]])
    depth = np.where(labels[chosen] >= 0, np.arange(len(RANKS)), -1).max(axis=1, initial=-1)
    first = np.concatenate([[0], np.cumsum(taxonomy.sizes)])[:-1]
    taxa = first[depth] + labels[chosen, depth]
    return Scope(tuple(library.barcode(number) for number in chosen.tolist()), tuple(taxa.tolist()))


def opened(scope: Scope, taxonomy: Taxonomy) -> Combiner | None:
    """Return the barcodes ready to be searched, labelled with the model's taxa; None without any."""
    if not scope.barcodes:
        return None
    lineages = np.concatenate([np.asarray(taxonomy.candidates(rank)) for rank in range(len(RANKS))])
    names = [taxonomy.lineage_names(row) for row in lineages[np.array(scope.taxa, dtype=np.int64)].tolist()]
    columns = dict(zip(RANKS, zip(*names, strict=True), strict=True))
    records = pa.table({rank: pa.array(column, pa.string()) for rank, column in columns.items()})
    return Combiner(Library.build(records, scope.barcodes), taxonomy)


def _place(labels: np.ndarray) -> np.ndarray:
    """Return how many of equal labels int64 [H] stand before each."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - first
    return place


def told(answers: Answers, near: Nearest, first: int = 0) -> Answers:
    """Add LIBRARY_INPUTS and `far` to the evidence of answers, those of the queries from `first` on of `near`."""
    found = near.evidence(answers.path, first)
    far = near.far(answers.path, found["edits"], first)
    return replace(answers, evidence=answers.evidence | found | {"far": far})
