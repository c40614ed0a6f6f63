"""What is asked of the predictor and what it answers: plain values, each with `to_dict()` for JSON.

Probabilities of an answer are consistent along every lineage: a taxon's is never below the sum of its children's. What
the children lack belongs to taxa that the model does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.curation.query import BarcodeCheck
from serve.answers.shown import answer_html


@dataclass(frozen=True, slots=True)
class Query:
    """One specimen: some photos of it, its barcode, or both."""

    key: str  # the asker's own name for it; given back, never interpreted
    images: tuple[bytes, ...] = ()  # image files, all of this specimen
    dna: str | None = None  # a barcode, or a FASTA text of one


@dataclass(frozen=True, slots=True)
class Taxon:
    """A taxon that competes at a rank."""

    name: str
    probability: float  # calibrated where the model has a calibration
    score: float  # roll-up probability before calibration, the library counted where there is a rule for it
    lineage: tuple[str | None, ...] = ()  # its names from the order down to itself; of species only

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"name": self.name, "probability": self.probability, "score": self.score}


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """What is said at one rank."""

    rank: str
    name: str | None  # the taxon of the answered lineage; None = the model knows none there
    probability: float | None  # that it is right
    reached: bool  # the probability is at or above the threshold
    taxa: tuple[Taxon, ...]  # the most probable ones, best first

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "rank": self.rank,
            "name": self.name,
            "probability": self.probability,
            "reached": self.reached,
            "taxa": [taxon.to_dict() for taxon in self.taxa],
        }


@dataclass(frozen=True, slots=True)
class Tie:
    """Taxa of one rank that the evidence does not tell apart."""

    rank: str
    names: tuple[str, ...]
    source: str  # "model": nearly equal probabilities; "library": references that are equally near

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"rank": self.rank, "names": list(self.names), "source": self.source}


@dataclass(frozen=True, slots=True)
class Flag:
    """A yes or no with the number behind it; both None where the model was not calibrated for it."""

    score: float | None
    flagged: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"score": self.score, "flagged": self.flagged}


@dataclass(frozen=True, slots=True)
class UnknownTaxon:
    """The possibility that the specimen is of a taxon that nobody has named to the model or library."""

    rank: str  # of the unknown taxon
    within: str | None  # the answered taxon above, in which it would lie; None = outside of all known ones
    probability: float  # with those of the known taxa of this rank it adds up to that of `within`

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"rank": self.rank, "within": self.within, "probability": self.probability}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A known specimen near the query, from the reference library."""

    key: str
    identity: float  # share of aligned nucleotides that agree
    overlap: int  # nucleotides aligned
    name: str | None  # of its deepest known rank
    rank: str | None  # that rank
    bin: str | None  # BOLD's cluster, "BOLD:AAA0001"
    country: str | None
    specimens: int  # in the library with this very barcode

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "key": self.key,
            "identity": self.identity,
            "overlap": self.overlap,
            "name": self.name,
            "rank": self.rank,
            "bin": self.bin,
            "country": self.country,
            "specimens": self.specimens,
        }


@dataclass(frozen=True, slots=True)
class Consensus:
    """What all references within a distance of the query have in common."""

    within: float  # share of aligned nucleotides that may differ
    name: str | None  # the lowest common ancestor; None = none, or nothing is so near
    rank: str | None  # its rank
    references: int  # specimens so near, of those that were compared
    species: int  # how many species these are of
    names: Mapping[str, int]  # species -> specimens, the commonest first
    conflict: bool  # they disagree at some rank

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "within": self.within,
            "name": self.name,
            "rank": self.rank,
            "references": self.references,
            "species": self.species,
            "names": dict(self.names),
            "conflict": self.conflict,
        }


@dataclass(frozen=True, slots=True)
class Voice:
    """What one expert says by itself, and how much it counted."""

    expert: str  # "photo", "barcode" or "library"
    weight: float  # of its log probabilities; 1 = taken at its word, 0 = it did not count
    species: str | None  # the most probable by this expert alone; None = it read or found nothing
    probability: float | None  # of that species, by this expert alone, not calibrated

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "expert": self.expert,
            "weight": self.weight,
            "species": self.species,
            "probability": self.probability,
        }


@dataclass(frozen=True, slots=True)
class Restriction:
    """How a checklist of names was understood."""

    known: int  # names that are taxa of the model
    unknown: Mapping[str, tuple[str, ...]]  # the first of the others -> names that they may stand for
    num_unknown: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        unknown = {name: list(suggestions) for name, suggestions in self.unknown.items()}
        return {"known": self.known, "unknown": unknown, "num_unknown": self.num_unknown}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one query."""

    key: str
    asked_with: str  # "image", "dna" or "fused" (both)
    ranks: tuple[RankAnswer, ...]  # the ranks asked for, coarse ones first
    answer_rank: str | None  # the deepest rank at or above the threshold; None = no answer
    answer_name: str | None
    answer_probability: float | None
    threshold: float
    stopped: str  # one of STOPS
    why: str  # the same as a sentence with names and numbers
    calibrated: bool  # False: the model has no calibration, probabilities are the softmax's own
    ties: tuple[Tie, ...]
    novelty: Flag  # is the species one that the model does not know?
    disagreement: Flag | None  # do photo and barcode show different specimens? None = not both were given
    barcode: BarcodeCheck | None  # None = no barcode was given
    share: Mapping[str, float]  # image, dna, library -> its part of the weights; they add up to 1
    evidence: tuple[Neighbour, ...]  # the nearest references, best first; () without library or barcode
    restriction: Restriction | None  # None = every taxon of the model was a candidate
    model: Mapping[str, Any]  # the predictor's card
    unknown: tuple[UnknownTaxon, ...] = ()  # one a rank, coarse ones first; () = not calibrated
    experts: tuple[Voice, ...] = ()  # what the answer rests on; () = not answered by a pool
    consensus: Consensus | None = None  # None = no library or no barcode

    def _repr_html_(self) -> str:
        return answer_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "key": self.key,
            "asked_with": self.asked_with,
            "answer": {"rank": self.answer_rank, "name": self.answer_name, "probability": self.answer_probability},
            "threshold": self.threshold,
            "stopped": self.stopped,
            "why": self.why,
            "calibrated": self.calibrated,
            "ranks": [rank.to_dict() for rank in self.ranks],
            "ties": [tie.to_dict() for tie in self.ties],
            "novelty": self.novelty.to_dict(),
            "unknown": [one.to_dict() for one in self.unknown],
            "disagreement": None if self.disagreement is None else self.disagreement.to_dict(),
            "barcode": None if self.barcode is None else told(self.barcode),
            "share": dict(self.share),
            "experts": [one.to_dict() for one in self.experts],
            "consensus": None if self.consensus is None else self.consensus.to_dict(),
            "evidence": [neighbour.to_dict() for neighbour in self.evidence],
            "restriction": None if self.restriction is None else self.restriction.to_dict(),
            "model": dict(self.model),
        }


STOPS = {
    "deepest": "the deepest rank that was asked for",
    "threshold": "the next rank's probability is below the threshold",
    "no_taxon": "the model knows no taxon of a finer rank there",
    "not_coi": "the barcode is not COI, so no name is given",
}
"""Why an answer ends where it does."""


@dataclass(frozen=True, slots=True)
class QueryError:
    """Why one query has no answer."""

    key: str
    what: str  # what was wrong with it, and what was got
    allowed: str  # what would have been allowed

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"key": self.key, "error": {"what": self.what, "allowed": self.allowed}}


def told(check: BarcodeCheck) -> dict[str, Any]:
    """Return a barcode's check as JSON values; `problems` are names, `told` the sentences."""
    return {
        "length": check.length,
        "strand": check.strand,
        "frame": check.frame,
        "stops": check.stops,
        "n_share": check.n_share,
        "is_coi": check.is_coi,
        "usable": check.usable,
        "problems": list(check.problems),
        "primers": list(check.primers),
        "numt": check.numt,
        "told": check.sentences(),
    }
