"""Probabilities that can be taken at their word: pure numpy functions and the file that a service loads.

A query is answered by one lineage (`train.inference.evidence` finds it). At each rank a logistic rule turns the
evidence for that answer into the probability that it is right; a parent's probability is never below its child's. The
answer that is given ends at the deepest rank whose probability reaches the user's threshold (back-off). Further rules
of the same form say whether the species is one that the model knows (novelty), and whether photo and barcode show
different specimens (disagreement). All were fitted on specimens that no training step saw.

The inputs of a rule are named, so further evidence enters without a change here: `calibrate.py` fits a rule on
whatever columns its evidence has.

Legend: N queries, R ranks, M inputs of a rule, K bins.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.specimens.taxonomy import RANKS
from engine.store.storage import Location
from train.inference.pool import Pool

FORMAT_VERSION = 4
FILE = "calibration.json"
LIBRARY_INPUTS = ("edits", "edits_to_other", "length")
"""Evidence of a reference library, log(1 + edits) to the nearest reference of the answered taxon and of any other taxon
of the rank, and the log of the query's nucleotides."""
POOLED = "pooled"  # photo and barcode by the pool: what a service answers with where it was fitted
CERTAIN = 1e-5  # a score counts as so far from 0 and 1 at least: float32 does not resolve what is nearer to 1
WITH_LIBRARY = "+library"  # at the end of a query's name: its rules read what a library found, too

Evidence = Mapping[str, np.ndarray]
"""Input -> float [N], or [N, R] where it differs between ranks."""


@dataclass(frozen=True)
class Rule:
    """A logistic rule: sigmoid(offset + sum of weight * (input - mean) / spread)."""

    inputs: tuple[str, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weight: tuple[float, ...]
    offset: float

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        """Probabilities float64 [N] for inputs float [N, M] in the order of `inputs`."""
        return sigmoid(self.offset + (columns - np.array(self.mean)) / np.array(self.spread) @ np.array(self.weight))


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))


def logit(shares: np.ndarray, floor: float = 1e-6) -> np.ndarray:
    """log(p / (1 - p)), with p kept `floor` away from 0 and 1."""
    inside = np.clip(shares, floor, 1 - floor)
    return np.log(inside / (1 - inside))


def columns_of(evidence: Evidence, inputs: tuple[str, ...], rank: int | None) -> np.ndarray:
    """Return inputs of a rule as float64 [N, M]. Raises ValueError naming the evidence that is missing."""
    missing = [name for name in inputs if name not in evidence]
    if missing:
        raise ValueError(f"calibration: evidence {', '.join(missing)} is missing, got {', '.join(evidence)}")
    found = (evidence[name] for name in inputs)
    return np.column_stack([values if values.ndim == 1 else values[:, rank] for values in found])


def columns_of_ranks(evidence: Evidence, name: str) -> np.ndarray:
    """Return one input at every rank, float64 [N, R]."""
    return np.column_stack([columns_of(evidence, (name,), rank)[:, 0] for rank in range(len(RANKS))])


def above(values: np.ndarray, highest: float = 1.0) -> np.ndarray:
    """Return, of values [N, R], those of the rank above; `highest` above the highest rank."""
    return np.column_stack([np.full(len(values), highest), values[:, :-1]])


@dataclass(frozen=True)
class Cap:
    """The share of true members of a taxon among specimens as far from it; straight between the points."""

    input: str  # the evidence that says how far: `far`, `photo_far` or `cosine`
    at: tuple[float, ...]  # rising
    share: tuple[float, ...]  # never rising with the distance

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the highest probability that a rank may have, float64 [N]."""
        return np.interp(values, self.at, self.share)


@dataclass(frozen=True)
class Calibrator:
    """The rules of one query (image, dna, average, fused, pooled; dna and pooled also with a library)."""

    ranks: tuple[Rule, ...]  # is the answer at this rank right?
    known: Rule  # is the species one that the model knows? read at the species rank
    novel_from: float  # score 1 - known from which a query is flagged
    unknown: tuple[Rule, ...]  # where the taxon above is right and the answer is not: is the true one unknown?
    pool: Pool | None = None  # of queries of several experts
    caps: tuple[Cap, ...] = ()  # how probable each rank may be so far from what is known

    def probabilities(self, evidence: Evidence) -> np.ndarray:
        """Return whether the answer is right at each rank, float64 [N, R]; never rising from a rank to a finer one."""
        found = [rule(columns_of(evidence, rule.inputs, rank)) for rank, rule in enumerate(self.ranks)]
        rising = np.maximum.accumulate(np.column_stack(found)[:, ::-1], axis=1)[:, ::-1]
        if not self.caps:
            return rising
        most = [cap(columns_of(evidence, (cap.input,), rank)[:, 0]) for rank, cap in enumerate(self.caps)]
        return np.minimum.accumulate(np.minimum(rising, np.column_stack(most)), axis=1)

    def unknown_taxa(self, evidence: Evidence, probabilities: np.ndarray | None = None) -> np.ndarray:
        """Return the probability of an unknown taxon of each rank inside the answered one above, float64 [N, R].

        What a rank loses against the rank above is shared by its known taxa that were not answered and an unknown one;
        the rank's rule gives the share of the unknown one, which is all of it where no other known taxon has a score.
        So the answered taxon, the other known ones and the unknown one add up to the rank above. At the highest rank
        it is what lies outside the scope.
        """
        own = self.probabilities(evidence) if probabilities is None else probabilities
        score = sigmoid(columns_of_ranks(evidence, "probability"))
        shares = [rule(columns_of(evidence, rule.inputs, rank)) for rank, rule in enumerate(self.unknown)]
        others = above(score, 1 - CERTAIN) > score + 0.1 * CERTAIN
        return (above(own) - own) * np.where(others, np.column_stack(shares), 1.0)

    def novelty(self, evidence: Evidence) -> np.ndarray:
        """Probability, in the mixture fitted on, that the species is not known to the model: float64 [N]."""
        return 1 - self.known(columns_of(evidence, self.known.inputs, len(RANKS) - 1))

    def is_novel(self, evidence: Evidence) -> np.ndarray:
        """Return the flag, bool [N]."""
        return self.novelty(evidence) >= self.novel_from


@dataclass(frozen=True)
class Disagreement:
    """Do photo and barcode show different specimens?"""

    rule: Rule
    flag_from: float

    def score(self, evidence: Evidence) -> np.ndarray:
        """float64 [N], higher = more likely two specimens."""
        return self.rule(columns_of(evidence, self.rule.inputs, None))


@dataclass(frozen=True)
class FittedLibrary:
    """The library that the rules of queries WITH_LIBRARY were fitted with."""

    name: str
    records: int  # those that were searched: not the specimens that were asked about
    checksum: str = ""  # of its manifest; "" = made of the training split, never saved

    def __str__(self) -> str:
        return f"{self.name} ({self.records:,} specimens{self.checksum and f', checksum {self.checksum[:12]}'})"

    def is_other(self, checksum: str, records: int | None) -> bool:
        """Is a saved library another one? One that was never saved is told by its number of specimens alone."""
        return checksum != self.checksum if self.checksum else records != self.records


@dataclass(frozen=True)
class Scope:
    """Some of what a model was trained with: how far is a query from all of it (`train.inference.scope`, `.looks`)?"""

    barcodes: tuple[str, ...] = ()  # on the coding strand
    taxa: tuple[int, ...] = ()  # of each barcode, its row among the taxa of all ranks, coarse ones first
    photos: tuple[tuple[float, ...], ...] = ()  # numbers of each photo


@dataclass(frozen=True)
class Calibration:
    """All that was fitted for one model."""

    taxonomy: str  # fingerprint of the taxonomy that the answers are from
    queries: Mapping[str, Calibrator]
    disagreement: Disagreement | None = None
    library: FittedLibrary | None = None  # None also in files of before this was noted
    scope: Scope = Scope()  # read by the rules of photos, and of barcodes asked without a library

    def save(self, path: Path | str) -> None:
        """Write one JSON file, whole or not at all."""
        value = {"format_version": FORMAT_VERSION, "ranks": list(RANKS), **asdict(self)}
        Location.parse(path).write_atomically(json.dumps(value, indent=1).encode())

    @classmethod
    def load(cls, path: Path | str) -> "Calibration":
        """Read what `save` wrote. Raises ValueError when it is no such file, or of another version or other ranks."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"calibration: got {path} ({error}), allowed: a file written by train.evaluate") from None
        if value.get("format_version") != FORMAT_VERSION or value.get("ranks") != list(RANKS):
            got = f"format version {value.get('format_version')!r}, ranks {value.get('ranks')}"
            raise ValueError(
                f"calibration {path}: got {got}, allowed {FORMAT_VERSION} and {list(RANKS)}; fit it anew with "
                "python -m train.evaluate --calibration, that of a library with python -m serve.library calibrate"
            )
        queries = {
            name: Calibrator(
                ranks=tuple(map(_rule, one["ranks"])),
                known=_rule(one["known"]),
                novel_from=one["novel_from"],
                unknown=tuple(map(_rule, one["unknown"])),
                pool=Pool.of(one["pool"]) if one["pool"] else None,
                caps=tuple(Cap(cap["input"], tuple(cap["at"]), tuple(cap["share"])) for cap in one["caps"]),
            )
            for name, one in value["queries"].items()
        }
        pair, library, scope = value["disagreement"], value.get("library"), value["scope"]
        disagreement = pair and Disagreement(_rule(pair["rule"]), pair["flag_from"])
        kept = Scope(tuple(scope["barcodes"]), tuple(scope["taxa"]), tuple(map(tuple, scope["photos"])))
        return cls(value["taxonomy"], queries, disagreement, library and FittedLibrary(**library), kept)


def _rule(value: Mapping[str, Any]) -> Rule:
    lists = {name: tuple(value[name]) for name in ("inputs", "mean", "spread", "weight")}
    return Rule(**lists, offset=float(value["offset"]))


def back_off(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return the deepest rank whose probability reaches the threshold, int64 [N]; -1 = none.

    Args:
        threshold: probability that an answer needs.
        probabilities: float [N, R], not rising with the rank.
    """
    return (probabilities >= threshold).sum(axis=1) - 1
