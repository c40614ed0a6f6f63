"""Fits the probabilities of a barcode library alone, by asking it about its own specimens.

Some specimens are taken out of the library and asked about. Of most of them the species stays, as far as others of it
are there; of the rest the whole species, genus, family or order is taken out too, so that the library meets what it
does not know. Barcodes of no taxon at all (shuffled, or changed at 14 to 40% of their sites) stand for what is out of
its scope. A library that is small is asked several times, and loses little each time.

The mixture that the probabilities are for: 80% of known species, 20% of unknown ones, three quarters of both clean, a
quarter damaged; the unknown ones in the shares UNKNOWN and OUTSIDE. A species that had no other reference is unknown,
too.

Legend: M records, N questions, R ranks, H haplotypes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.signals.damage import measured_barcodes
from engine.specimens.taxonomy import RANKS
from train.evaluation.fit_rules import fit_caps, fit_query, fit_unknown
from train.evaluation.known_questions import (
    CLEAN,
    DAMAGE,
    DAMAGED,
    GENUS,
    OUTSIDE,
    OUTSIDE_ASKED,
    SPECIES,
    WITHHELD,
    Cases,
)
from train.evaluation.outsiders import outside_barcodes
from train.inference.calibration import FILE, Calibration, FittedLibrary
from train.inference.evidence import Answers
from train.inference.library_alone import INPUTS, QUERY, LibraryScorer
from train.reference import Library
from train.reference.library import read_manifest

ASKED = 2000  # specimens whose species stays, at most SHARE of the library
SHARE = 1 / 8  # of the library that is asked at once; also the most that taxa taken out at one rank hold
TIMES = 8  # that a library is asked at most, until ASKED are
FEWEST = 20  # barcodes named to species
DAMAGED_ASKED = 500  # of ASKED, in each kind of damage
UNKNOWN_ASKED = {0: 150, 1: 150, GENUS: 250, SPECIES: 500}  # specimens of taxa taken out whole: rank -> how many
UNKNOWN = {0: 0.02, 1: 0.03, GENUS: 0.05, SPECIES: 0.08}  # shares of the mixture
NEARNESS = ("rate", "length")  # all that says whether a taxon is unknown: the rest differs once a species is taken out


@dataclass(frozen=True)
class Question:
    """Barcodes asked together."""

    rows: np.ndarray  # int64 [N] of the library's records
    barcodes: list[str]
    weight: float  # of all of them together
    inside: bool = True  # False: changed so that no name of the library is right


@dataclass(frozen=True)
class Held:
    """A library without the specimens that it is asked about."""

    library: Library
    questions: list[Question]


def fit_library(library: Library, *, seed: int = 0, threads: int = 1) -> Calibration:
    """Fit the rules of a library.

    Args:
        library: with barcodes; it is not changed.
        seed: of the choice of specimens.
        threads: of the search.

    Raises:
        ValueError: when too few specimens are named at some rank.
    """
    cases = collect(library, seed, threads)
    calibrator = replace(fit_query(cases, INPUTS), unknown=fit_unknown(cases, NEARNESS), caps=fit_caps(cases, "far"))
    fitted = FittedLibrary(QUERY, len(library.records))
    return Calibration(library.taxonomy.fingerprint, {QUERY: calibrator}, library=fitted)


def collect(library: Library, seed: int = 0, threads: int = 1) -> Cases:
    """Ask a library about its own specimens, as often as its size needs; weights are those of the mixture."""
    cases: list[Cases] = []
    asked = 0
    for time in range(TIMES):
        held = hold_out(library, seed + time)
        scorer = LibraryScorer(held.library)
        cases += [ask(scorer, question, library, threads) for question in held.questions if len(question.rows)]
        asked += len(held.questions[0].rows)
        if asked >= ASKED:
            break
    whole = Cases.concatenate(cases)
    weight = whole.weight.copy()
    for rows, share in ((whole.withheld, WITHHELD), (~whole.withheld, 1 - WITHHELD)):
        weight[rows] *= share / max(weight[rows].sum(), 1e-12)
    return replace(whole, weight=weight)


def fit_folder(folder: Path | str, *, seed: int = 0, threads: int = 1) -> Calibration:
    """Fit the rules of a saved library and write them beside it.

    Args:
        folder: of `Library.save`.
        seed: of the choice of specimens.
        threads: of the search.

    Raises:
        ValueError: what `Library.load` and `fit_library` raise.
    """
    place = Path(folder)
    found = fit_library(Library.load(place), seed=seed, threads=threads)
    assert found.library is not None
    checksum = str(read_manifest(place)["checksum"])
    fitted = replace(found, library=FittedLibrary(place.resolve().name, found.library.records, checksum))
    fitted.save(place / FILE)
    return fitted


def hold_out(library: Library, seed: int = 0) -> Held:
    """Choose what is asked, and take it out of the library."""
    rng = np.random.default_rng(seed)
    haplotype = library.records["haplotype"].to_numpy()
    free = (haplotype >= 0) & (library.labels[:, SPECIES] >= 0)
    gone = np.zeros(len(haplotype), dtype=bool)
    if free.sum() < FEWEST:
        raise ValueError(
            f"calibration of a library: got {int(free.sum())} barcodes named to species, allowed {FEWEST} or more"
        )
    limit = max(2, int(free.sum() * SHARE))
    unknown: list[tuple[np.ndarray, float]] = []
    for rank in sorted(UNKNOWN_ASKED):
        rows = _of_whole_taxa(library.labels[:, rank], free & ~gone, min(UNKNOWN_ASKED[rank], limit // 2), rng)
        gone |= np.isin(library.labels[:, rank], np.unique(library.labels[rows, rank]))
        unknown.append((rows, UNKNOWN[rank]))
    there = np.flatnonzero(free & ~gone)
    known = np.sort(rng.choice(there, min(ASKED, limit, len(there)), replace=False))
    gone[known] = True
    return Held(_without(library, gone), _questions(library, known, unknown, rng))


def _of_whole_taxa(labels: np.ndarray, free: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return specimens int64 [n], up to ten of each of random taxa that hold at most SHARE of all: about `most`."""
    taxa, sizes = np.unique(labels[free & (labels >= 0)], return_counts=True)
    chosen: list[int] = []
    left = SHARE * sizes.sum()
    for place in rng.permutation(len(taxa)).tolist():
        if len(chosen) >= most:
            break
        if sizes[place] <= left:
            left -= sizes[place]
            chosen += rng.permutation(np.flatnonzero(free & (labels == taxa[place])))[:10].tolist()
    return np.sort(np.array(chosen, dtype=np.int64))


def _without(library: Library, gone: np.ndarray) -> Library:
    records = library.records.filter(pa.array(~gone))
    return Library.build(records, _barcodes(library, np.flatnonzero(~gone)))


def _barcodes(library: Library, rows: np.ndarray) -> list[str]:
    haplotypes = library.records["haplotype"].to_numpy()[rows].tolist()
    return [library.barcode(number) if number >= 0 else "" for number in haplotypes]


def _questions(
    library: Library, known: np.ndarray, unknown: list[tuple[np.ndarray, float]], rng: np.random.Generator
) -> list[Question]:
    result = [Question(known, _barcodes(library, known), CLEAN)]
    keys = library.records["key"].to_pylist()
    for degrade in DAMAGE.values():
        rows = np.sort(rng.choice(known, min(DAMAGED_ASKED, len(known)), replace=False))
        given = measured_barcodes(_barcodes(library, rows), [str(keys[row]) for row in rows], 0, degrade, True)
        result.append(Question(rows, given, DAMAGED / len(DAMAGE)))
    for rows, weight in unknown:  # clean and damaged in the shares of known ones, each damage asked of some
        result.append(Question(rows, _barcodes(library, rows), weight * CLEAN / (CLEAN + DAMAGED)))
        for number, degrade in enumerate(DAMAGE.values()):
            some = rows[number :: len(DAMAGE)]
            given = measured_barcodes(_barcodes(library, some), [str(keys[row]) for row in some], 0, degrade, True)
            result.append(Question(some, given, weight * DAMAGED / (CLEAN + DAMAGED) / len(DAMAGE)))
    rows = np.sort(rng.choice(known, min(OUTSIDE_ASKED, len(known)), replace=False))
    outside = outside_barcodes(_barcodes(library, rows), [str(keys[row]) for row in rows])
    return [*result, Question(rows, outside, OUTSIDE, inside=False)]


def ask(scorer: LibraryScorer, question: Question, named: Library, threads: int = 1) -> Cases:
    """Ask a library; `named` holds the true names of the question's rows, the taxa of `scorer` are fewer."""
    answers = answers_of(scorer, question.barcodes, threads)
    names = {rank: named.names[rank].take(pa.array(question.rows)) for rank in RANKS}
    labels = scorer.library.taxonomy.encode(names)
    scored = named.labels[question.rows] >= 0
    if not question.inside:
        labels = np.full_like(labels, -1)
        scored = np.ones_like(scored)
    return cases_of(answers, labels, scored, question.weight)


def answers_of(scorer: LibraryScorer, barcodes: Sequence[str], threads: int = 1) -> Answers:
    """Answer clean barcodes, and gather evidence."""
    hits = scorer.library.search(barcodes, threads=threads)
    return Answers.concatenate([chunk.answers for chunk in scorer.scored(scorer.combiner.of(hits))])


def cases_of(answers: Answers, labels: np.ndarray, scored: np.ndarray, weight: float = 1.0) -> Cases:
    """Compare answers with the truth.

    Args:
        answers: of N questions.
        labels: int64 [N, R], -1 = a taxon that the library does not know, or no name.
        scored: bool [N, R], has a name there.
        weight: of all of them together.
    """
    count = len(labels)
    unknown = scored & (labels < 0)
    return Cases(
        answers,
        (answers.path == labels) & (labels >= 0),
        scored,
        unknown[:, SPECIES],
        labels[:, GENUS] >= 0,
        unknown,
        np.arange(count),
        np.full(count, weight / max(1, count)),
    )
