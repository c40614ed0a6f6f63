"""From scores to answers: calibrated probabilities for every taxon that is told, where the answer stops, ties.

The model's roll-up gives each taxon a score q; calibration gives the taxa of the answered lineage a probability p, rank
by rank, and says how probable an unknown taxon of each rank is inside the answered one above. The others follow: those
that leave the answered lineage below rank r share, as their scores do, what p_r has beyond p_(r+1) and the unknown
taxon of rank r + 1. So the known children of a taxon and its unknown one add up to it. Without a calibration p is q.

Legend: b queries of a chunk, R ranks, M taxa considered at a rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from engine.specimens.taxonomy import RANKS, Taxonomy
from serve.answers.answer import Answer, Consensus, Flag, Neighbour, RankAnswer, Taxon, Tie, UnknownTaxon, Voice
from serve.answers.candidates import Subset
from serve.answers.query import Prepared
from train.inference.calibration import Calibrator, above
from train.inference.evidence import Scored, of_path
from train.inference.experts import BARCODE, LIBRARY, PHOTO
from train.inference.scoring import Scorer

TIE = 0.5  # of the answer's score: taxa that score so much are told as tied with it
_CONSIDERED = 16  # taxa per rank, beyond those told, among which the most probable are looked for
_EXPERTS = {"image": PHOTO, "dna": BARCODE, "library": LIBRARY}  # an answer's names of what was given
_NONE = Flag(None, None)
_Taxa = list[tuple[int, float, float]]  # (taxon, probability, score) of one query at one rank, best first


@dataclass(kw_only=True)
class Read:
    """What is known of the queries beside their scores. `None` in the lists: does not apply."""

    query: str  # "image", "dna" or "fused"
    calibrated: bool
    subset: Subset | None
    card: Mapping[str, Any]
    share: np.ndarray | None = None  # [N], the photo's; of fused queries
    disagreement: tuple[np.ndarray, np.ndarray] | None = None  # scores and flags [N]
    references: list[dict[str, Any]] | None = None  # of `train.reference.answers`
    consensus: list[dict[str, Any]] | None = None  # of `train.reference.consensus`


@dataclass(frozen=True)
class _Ranked:
    """The taxa of one rank of a chunk, best first."""

    taxon: list[list[int]]  # b lists
    score: list[list[float]]
    probability: list[list[float]]


@dataclass(frozen=True, slots=True)
class _Row:
    """What was found for one query."""

    path: list[int]  # the answered lineage, -1 = no taxon
    own: list[float]  # its probabilities
    ranked: list[_Taxa]  # per rank
    novelty: Flag
    unknown: list[float]  # probability of an unknown taxon of each rank; [] = not calibrated
    voices: tuple[Voice, ...]  # of the experts; () = not answered by a pool


def answers(
    scorer: Scorer,
    chunk: Scored,
    calibrator: Calibrator | None,
    read: Read,
    items: Sequence[tuple[Prepared, Any]],
    first: int,
) -> list[Answer]:
    """Return the answers of a chunk.

    Args:
        calibrator: the rules of the query; None = uncalibrated.
        chunk: scored queries.
        read: what is known of the queries beside their scores.
        scorer: of the taxa that may be answered.
        items: its queries with their `Options`.
        first: place of the first of them among the queries of `read`.
    """
    if not items:
        return []
    path, told = chunk.answers.path, chunk.answers.evidence
    if calibrator is None:
        plain = of_path(chunk.probabilities, path)
        own = np.maximum.accumulate(plain[:, ::-1], axis=1)[:, ::-1]
        novelty = [_NONE] * len(items)
        unknown = np.zeros((len(items), 0))
        factor = np.ones(own.shape)
    else:
        own = np.where(path >= 0, calibrator.probabilities(told), 0.0)
        flags = zip(calibrator.novelty(told).tolist(), calibrator.is_novel(told).tolist(), strict=True)
        novelty = [Flag(score, flagged) for score, flagged in flags]
        unknown = calibrator.unknown_taxa(told, own)
        factor = _factors(scorer, chunk, above(own) - own - unknown)
    top = max(options.top for _, options in items)
    ranked = [_rank(scorer, chunk, rank, own, factor, top) for rank in range(len(RANKS))]
    voices = _voices(scorer.taxonomy.names[-1], chunk)
    rows = [
        _Row(
            path[row].tolist(),
            own[row].tolist(),
            [rank_of(one, row) for one in ranked],
            novelty[row],
            unknown[row].tolist(),
            voices[row],
        )
        for row in range(len(items))
    ]
    return [
        _answer(scorer.taxonomy, one, options, row, read, first + number)
        for number, ((one, options), row) in enumerate(zip(items, rows, strict=True))
    ]


def _voices(species: Sequence[str], chunk: Scored) -> list[tuple[Voice, ...]]:
    """Return what each expert says of each query of a chunk."""
    each = [
        [
            Voice(one.expert, weight, species[taxon] if taxon >= 0 else None, chance if taxon >= 0 else None)
            for weight, taxon, chance in zip(
                one.weight.tolist(), one.species.tolist(), one.probability.tolist(), strict=True
            )
        ]
        for one in chunk.voices
    ]
    return list(zip(*each, strict=True)) if each else [()] * len(chunk.answers.path)


def rank_of(ranked: _Ranked, row: int) -> _Taxa:
    """One query's taxa."""
    return list(zip(ranked.taxon[row], ranked.probability[row], ranked.score[row], strict=True))


def _rank(scorer: Scorer, chunk: Scored, rank: int, own: np.ndarray, factor: np.ndarray, top: int) -> _Ranked:
    """Return the most probable taxa of a rank for each query, `top` or more, the answered one always among them."""
    values = chunk.probabilities[rank]
    count = values.shape[1]
    if not count:
        nothing: list[list[Any]] = [[] for _ in range(len(values))]
        return _Ranked(nothing, nothing, nothing)
    score, taxon = values.topk(min(count, top + _CONSIDERED), dim=1)
    taxa, scores = taxon.cpu().numpy(), score.double().cpu().numpy()  # [b, M]
    path = chunk.answers.path
    lacking = (path[:, rank] >= 0) & (taxa != path[:, rank, None]).all(axis=1)
    taxa[lacking, -1] = path[lacking, rank]
    scores[lacking, -1] = values.double().cpu().numpy()[lacking, path[lacking, rank]]
    lineage = scorer.candidates[int(scorer.first[rank]) + torch.from_numpy(taxa).to(scorer.device)].cpu().numpy()
    level = np.zeros(taxa.shape, dtype=np.int64)  # ranks down to which the taxon shares the answered lineage
    for upper in range(rank):
        same = (lineage[:, :, upper] == path[:, None, upper]) & (path[:, None, upper] >= 0)
        level = np.where(same, upper + 1, level)
    probability = scores * np.take_along_axis(factor, level, axis=1)
    is_answer = taxa == path[:, rank, None]
    probability[is_answer] = np.broadcast_to(own[:, rank, None], taxa.shape)[is_answer]
    order = np.lexsort((-scores, ~is_answer, -probability), axis=1)
    parts = (np.take_along_axis(part, order, axis=1).tolist() for part in (taxa, scores, probability))
    return _Ranked(*parts)


def _factors(scorer: Scorer, chunk: Scored, others: np.ndarray) -> np.ndarray:
    """Return what the scores of taxa are multiplied by, by the rank at which they leave the answered lineage, [b, R].

    `others` float64 [b, R]: what the known taxa have together that leave it there.
    """
    factor = np.zeros(others.shape)
    path = torch.from_numpy(chunk.answers.path).to(scorer.device)
    for rank, values in enumerate(chunk.probabilities):
        lineages = scorer.candidates[int(scorer.first[rank]) : int(scorer.first[rank]) + values.shape[1]]
        leaves = lineages[:, rank] != path[:, rank, None]
        if rank:
            leaves &= (lineages[:, rank - 1] == path[:, rank - 1, None]) & (path[:, rank - 1, None] >= 0)
        left = torch.where(leaves, values, 0.0).double().sum(1).cpu().numpy()
        np.divide(others[:, rank], left, out=factor[:, rank], where=left > 0)
    return factor


def _answer(taxonomy: Taxonomy, one: Prepared, options: Any, row: _Row, read: Read, number: int) -> Answer:
    path, own, ranked, names = row.path, row.own, row.ranked, taxonomy.names
    asked = [rank for rank, name in enumerate(RANKS) if name in options.ranks]
    ranks = tuple(
        RankAnswer(
            RANKS[rank],
            names[rank][path[rank]] if path[rank] >= 0 else None,
            own[rank] if path[rank] >= 0 else None,
            path[rank] >= 0 and own[rank] >= options.threshold,
            tuple(
                Taxon(names[rank][taxon], chance, score, _above(taxonomy, rank, taxon))
                for taxon, chance, score in _first(ranked[rank], path[rank], options.top)
            ),
        )
        for rank in asked
    )
    refused = one.check is not None and one.check.is_coi is False
    reached = None if refused else next((rank for rank in reversed(ranks) if rank.reached), None)
    stopped, why = stop_of(ranks, reached, dict.fromkeys(RANKS, options.threshold), refused)
    found = read.references[number] if read.references is not None else None
    return Answer(
        key=one.key,
        asked_with=read.query,
        ranks=ranks,
        answer_rank=reached.rank if reached else None,
        answer_name=reached.name if reached else None,
        answer_probability=reached.probability if reached else None,
        threshold=options.threshold,
        stopped=stopped,
        why=why,
        calibrated=read.calibrated,
        ties=_ties(taxonomy, asked, row, found),
        novelty=row.novelty,
        disagreement=_disagreement(read, number),
        barcode=one.check,
        share=_share(read, row.voices, number),
        evidence=_evidence(found),
        restriction=read.subset.restriction if read.subset is not None else None,
        model=read.card,
        unknown=_unknown(names, row),
        experts=row.voices,
        consensus=None if read.consensus is None else Consensus(**read.consensus[number]),
    )


def _above(taxonomy: Taxonomy, rank: int, taxon: int) -> tuple[str | None, ...]:
    """Return a species' lineage; of other taxa nobody asks."""
    return tuple(taxonomy.lineage_names(taxonomy.lineages[rank][taxon].tolist())) if rank == len(RANKS) - 1 else ()


def _unknown(names: Sequence[Sequence[str]], row: _Row) -> tuple[UnknownTaxon, ...]:
    """Name the taxa in which an unknown one would lie."""
    found = []
    for rank, probability in enumerate(row.unknown):
        above = row.path[rank - 1] if rank else -1
        within = names[rank - 1][above] if above >= 0 else None
        found.append(UnknownTaxon(RANKS[rank], within, probability))
    return tuple(found)


def _first(ranked: _Taxa, answered: int, top: int) -> _Taxa:
    """Return the first `top` taxa, always with the answered one and, of more than one, that of the highest score."""
    needed = {answered} if top == 1 else {answered, max(ranked, key=itemgetter(2))[0]} if ranked else set()
    chosen = [place for place, one in enumerate(ranked) if one[0] in needed]
    chosen += [place for place in range(len(ranked)) if place not in chosen][: top - len(chosen)]
    return [ranked[place] for place in sorted(chosen)]


def stop_of(
    ranks: Sequence[RankAnswer], reached: RankAnswer | None, thresholds: Mapping[str, float], refused: bool
) -> tuple[str, str]:
    """Return a key of STOPS and the sentence; `thresholds`: rank -> probability that an answer there needs."""
    if refused:
        return "not_coi", "the barcode is not COI: a name for it would mean nothing, however probable; ask without it"
    after = ranks[ranks.index(reached) + 1 :] if reached else ranks
    if not after:
        assert reached is not None
        return "deepest", (
            f"{reached.rank} {reached.name} has {reached.probability:.3f}, at or above the threshold "
            f"{thresholds[reached.rank]:g}, "
            "and no finer rank was asked for"
        )
    following = next((rank for rank in after if rank.name is not None), None)
    if following is None:
        return "no_taxon", f"the model knows no {after[0].rank} there"
    return "threshold", (
        f"{following.rank} {following.name} has {following.probability:.3f}, below the threshold "
        f"{thresholds[following.rank]:g}"
    )


def _ties(taxonomy: Taxonomy, asked: Sequence[int], row: _Row, found: Mapping[str, Any] | None) -> tuple[Tie, ...]:
    """By the model's scores (taxa that have TIE of the answer's or more) and by the library's references."""
    ties = []
    for rank in asked:
        best = next((score for taxon, _, score in row.ranked[rank] if taxon == row.path[rank]), 0.0)
        near = [taxonomy.names[rank][taxon] for taxon, _, score in row.ranked[rank] if score >= TIE * best > 0]
        if len(near) > 1:
            ties.append(Tie(RANKS[rank], tuple(near), "model"))
    for rank_name, names in (found or {}).get("tied", {}).items():
        if RANKS.index(rank_name) in asked:
            ties.append(Tie(rank_name, tuple(names), "library"))
    return tuple(ties)


def _disagreement(read: Read, number: int) -> Flag | None:
    if read.query != "fused":
        return None
    if read.disagreement is None:
        return _NONE
    scores, flags = read.disagreement
    return Flag(float(scores[number]), bool(flags[number]))


def _share(read: Read, voices: Sequence[Voice], number: int) -> dict[str, float]:
    """Return the parts of photo, barcode and library in the weights; without a pool the gate's of the first two."""
    if not voices:
        photo = float(read.share[number]) if read.share is not None else float(read.query == "image")
        return {"image": photo, "dna": 1.0 - photo, "library": 0.0}
    weights = {one.expert: one.weight for one in voices}
    whole = sum(weights.values()) or 1.0
    return {name: weights.get(expert, 0.0) / whole for name, expert in _EXPERTS.items()}


def _evidence(found: Mapping[str, Any] | None) -> tuple[Neighbour, ...]:
    if found is None:
        return ()
    neighbours = []
    for record in found["evidence"]:
        rank = next((rank for rank in reversed(RANKS) if record[rank]), None)
        neighbours.append(
            Neighbour(
                record["key"],
                record["identity"],
                record["overlap"],
                record[rank] if rank else None,
                rank,
                record["bin_uri"],
                record["country"],
                record["specimens"],
            )
        )
    return tuple(neighbours)
