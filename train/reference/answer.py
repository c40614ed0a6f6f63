"""From aligned references to names: the nearest taxon of every rank, and the answer that stops where references tie.

At a rank the references that are labelled there count. Those that differ from the query by no more than half an edit
above the least are *tied*: all their taxa are named, and the answer ends at the last rank where they are one taxon.
The *consensus* is the lowest taxon that all references within a distance of the query have in common.

Legend: N queries, T hits, R ranks, P (query, taxon) pairs of a rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from engine.specimens.taxonomy import RANKS
from train.reference.library import COLUMNS, Library
from train.reference.search import Hits

TIE = 0.5  # edits
_NEARBY = 2.0  # edits beyond a taxon's nearest reference: specimens that speak for it where taxa are equally near
_EVIDENCE = 5  # references told of an answer
WITHIN = (
    0.02  # share of aligned nucleotides that differ: the consensus of 1,500 of bold's val barcodes is a species for
)
# 96.9%, 99.7% of these right; within 0.5% (no reference for 9%) 89.9%, within 4% (species meet) 91.0%, 1 to 3% as 2%
_NAMED = 10  # species told of a consensus
_SPECIES = RANKS.index("species")


@dataclass(frozen=True)
class RankScores:
    """The taxa that a rank's labelled hits belong to, by query, the best first: what a combination can start from."""

    query: np.ndarray  # int64 [P], ascending
    taxon: np.ndarray  # int64 [P]
    difference: np.ndarray  # float64 [P], edits of the nearest reference of the taxon
    records: np.ndarray  # int64 [P], specimens of the taxon within _NEARBY of that
    hit: np.ndarray  # int64 [P], that reference's hit

    def best(self, num_queries: int) -> np.ndarray:
        """Return the first taxon of each query, int64 [N]; -1 = none."""
        answer = np.full(num_queries, -1)
        answer[self.query[::-1]] = self.taxon[::-1]
        return answer


def rank_scores(
    library: Library, hits: Hits, rank: int, labels: np.ndarray | None = None, without: np.ndarray | None = None
) -> RankScores:
    """Score taxa by their nearest reference; of equally near ones the taxon with more specimens there comes first.

    `labels` int64 [M, R] stand for the library's own where taxa are numbered otherwise, -1 = unknown. `without` int64
    [N] names for each query a species of these whose specimens do not count, -1 = none.

    (bold val, species top-1 in %, 100 / 150 / 200 nt: 98.1 / 98.8 / 98.9; counting only specimens that are as near as
    the nearest 98.0 / 98.7 / 98.8; letting e times as many specimens outweigh 0.4 edits 97.1 / 98.7 / 98.8.)
    """
    hit, row = _specimens(library, hits.reference)
    labels = library.labels if labels is None else labels
    taxon = labels[row, rank]
    known = taxon >= 0
    if without is not None:
        own = without[hits.query[hit]]
        known &= (own < 0) | (labels[row, _SPECIES] != own)
    hit, taxon = hit[known], taxon[known]
    query, difference = hits.query[hit], hits.difference[hit]
    order = np.lexsort((hit, difference, taxon, query))
    hit, taxon, query, difference = hit[order], taxon[order], query[order], difference[order]
    new = np.concatenate([[True], (query[1:] != query[:-1]) | (taxon[1:] != taxon[:-1])])[: len(query)]
    pair = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    records = np.bincount(pair, weights=difference <= difference[first][pair] + _NEARBY, minlength=len(first)).astype(
        int
    )
    best = np.lexsort((taxon[first], -records, difference[first], query[first]))
    first = first[best]
    return RankScores(query[first], taxon[first], difference[first], records[best], hit[first])


def _specimens(library: Library, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the specimens of haplotypes int64 [T]: the place in T and the row of the library, int64 [specimens]."""
    rows, begin = library.rows_of
    held = begin[reference + 1] - begin[reference]
    hit = np.repeat(np.arange(len(held)), held)
    return hit, rows[np.repeat(begin[reference] - np.cumsum(held) + held, held) + np.arange(held.sum())]


def nearest_labels(library: Library, hits: Hits, labels: np.ndarray | None = None) -> np.ndarray:
    """Name the taxon of the nearest labelled reference at every rank, int64 [N, R]; -1 = none. `labels` as above."""
    ranks = (rank_scores(library, hits, rank, labels) for rank in range(len(RANKS)))
    return np.column_stack([one.best(len(hits.length)) for one in ranks])


def consensus(library: Library, hits: Hits, within: Sequence[float]) -> list[dict[str, Any]]:
    """Return what the references near each query have in common.

    Keys: `within` (the distance), `rank` and `name` of the lowest common ancestor (None = none, or nothing is near),
    `references` (specimens there, of the barcodes that were aligned: the search aligns 64 at least), `species` (how
    many), `names` (species -> specimens, the commonest first, at most 10), `conflict` (they disagree at some rank).

    Args:
        library: that was searched.
        hits: of N queries.
        within: [N], share of the aligned nucleotides that may differ.
    """
    far = np.asarray(within, dtype=np.float64)[hits.query] + 1e-9
    near = np.flatnonzero(hits.distance <= far * np.maximum(hits.overlap, 1))
    hit, row = _specimens(library, hits.reference[near])
    begin = np.searchsorted(hits.query[near][hit], np.arange(len(hits.length) + 1))
    labels = library.labels[row]
    result = []
    for number, (low, high) in enumerate(pairwise(begin.tolist())):
        taxa = [np.unique(column[column >= 0], return_counts=True) for column in labels[low:high].T]
        one: dict[str, Any] = {"within": float(within[number]), "rank": None, "name": None}
        for rank, (found, _) in enumerate(taxa):
            if len(found) > 1:
                break
            if len(found):
                one |= {"rank": RANKS[rank], "name": library.taxonomy.names[rank][found[0]]}
        species = [
            (library.taxonomy.names[_SPECIES][taxon], count) for taxon, count in zip(*taxa[_SPECIES], strict=True)
        ]
        species.sort(key=lambda pair: (-pair[1], pair[0]))
        one |= {"references": high - low, "species": len(species), "conflict": any(len(found) > 1 for found, _ in taxa)}
        result.append(one | {"names": {name: int(count) for name, count in species[:_NAMED]}})
    return result


def answers(library: Library, hits: Hits) -> list[dict[str, Any]]:
    """Return every query's answer as JSON values.

    Keys: `names` (rank -> name, down to where the answer stops), `rank` (that rank, None = no answer), `tied` (rank ->
    names, where several taxa are equally near), `strand`, `exact` (proven: none is nearer); `identity`, `overlap`,
    `bin_uri` of the nearest reference; `records_of_species` (specimens of the answered species in the library),
    `other_species` (nearest reference of another species: name, identity, overlap; None = not among the candidates),
    `evidence` (the nearest references: key, names, BIN, country, identity, overlap, number of specimens with this very
    barcode).
    """
    scores = [rank_scores(library, hits, rank) for rank in range(len(RANKS))]
    spans = [np.searchsorted(one.query, np.arange(len(hits.length) + 1)) for one in scores]
    evidence, exact = _evidence(library, hits), hits.exact
    result = []
    for number, told in enumerate(evidence):
        mine = [slice(span[number], span[number + 1]) for span in spans]
        names, rank, tied, species = _lineage(library, scores, mine)
        answer: dict[str, Any] = {"names": names, "rank": rank, "tied": tied, "strand": int(hits.strand[number])}
        answer["exact"] = bool(exact[number])
        answer |= {key: told[0][key] if told else None for key in ("identity", "overlap", "bin_uri")}
        answer["records_of_species"] = int(library.records_per_species[species]) if species >= 0 else None
        answer["other_species"] = _other(library, hits, scores[_SPECIES], mine[_SPECIES], species)
        result.append(answer | {"evidence": told})
    return result


def _lineage(
    library: Library, scores: list[RankScores], mine: list[slice]
) -> tuple[dict[str, str], str | None, dict[str, list[str]], int]:
    """Names down to the deepest rank whose tied references are one taxon, below the ranks answered before."""
    names: dict[str, str] = {}
    tied: dict[str, list[str]] = {}
    answered = np.full(len(RANKS), -1)
    for rank, (one, span) in enumerate(zip(scores, mine, strict=True)):
        taxa, difference = one.taxon[span], one.difference[span]
        if not len(taxa):
            continue
        taxa = taxa[difference <= difference[0] + TIE]
        lineage = library.taxonomy.lineages[rank][taxa]
        if len(taxa) > 1:
            tied[RANKS[rank]] = [library.taxonomy.names[rank][taxon] for taxon in taxa.tolist()]
            break
        if ((lineage[0] != answered) & (lineage[0] >= 0) & (answered >= 0)).any():
            break  # the nearest reference with a name here belongs elsewhere
        answered[rank] = taxa[0]
        names[RANKS[rank]] = library.taxonomy.names[rank][taxa[0]]
    return names, next(reversed(names), None), tied, int(answered[_SPECIES])


def _other(library: Library, hits: Hits, scores: RankScores, span: slice, species: int) -> dict[str, Any] | None:
    for taxon, hit in zip(scores.taxon[span].tolist(), scores.hit[span].tolist(), strict=True):
        if species >= 0 and taxon != species:
            name = library.taxonomy.names[_SPECIES][taxon]
            return {"name": name, "identity": float(hits.identity[hit]), "overlap": int(hits.overlap[hit])}
    return None


def _evidence(library: Library, hits: Hits) -> list[list[dict[str, Any]]]:
    """Describe the nearest references of every query, each by the first of its specimens."""
    rows, begin = library.rows_of
    near = [np.arange(low, min(high, low + _EVIDENCE)) for low, high in pairwise(hits.start.tolist())]
    chosen = np.concatenate([*near, np.empty(0, dtype=np.int64)]).astype(np.int64)
    haplotype = hits.reference[chosen]
    told = library.records.take(pa.array(rows[begin[haplotype]])).select(COLUMNS).to_pylist()
    specimens = begin[haplotype + 1] - begin[haplotype]
    measured = zip(hits.identity[chosen].tolist(), hits.overlap[chosen].tolist(), specimens.tolist(), strict=True)
    for record, (identity, overlap, count) in zip(told, measured, strict=True):
        record |= {"identity": identity, "overlap": overlap, "specimens": count}
    following = iter(told)
    return [list(islice(following, len(part))) for part in near]
