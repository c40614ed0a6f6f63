"""What every source of answers shares: options, checklists, and queries grouped by what they are asked with.

Legend: N queries.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from engine.config import DataConfig
from engine.specimens.taxonomy import RANKS, Taxonomy
from serve.answers.answer import Answer, Query, QueryError
from serve.answers.candidates import Checklist, Subset
from serve.answers.query import Prepared, prepare
from train.inference.calibration import Calibration
from train.inference.scoring import Scorer
from train.reference import WITHIN

THRESHOLD = 0.95
TOP = 5
MAX_TOP = 100
MAX_WITHIN = 0.04  # a search tells references that are so much farther than the nearest
SUBSET = "names of taxa as GET /v1/taxa lists them"
_CHECKLISTS, _SHORT = 64, 2_000  # lists remembered, and the most names of one: a region's list of a group has fewer


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a query is to be answered. Raises ValueError saying what, got and allowed."""

    threshold: float = THRESHOLD
    ranks: tuple[str, ...] = RANKS
    subset: tuple[str, ...] | None = None  # names of taxa, of any rank, among which to choose
    top: int = TOP
    within: float = WITHIN  # share of nucleotides by which the references of the consensus may differ

    def __post_init__(self) -> None:
        if not 0.0 <= self.within <= MAX_WITHIN:
            raise ValueError(f"within: got {self.within}, allowed 0..{MAX_WITHIN}")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold: got {self.threshold}, allowed 0..1")
        if not self.ranks or not set(self.ranks) <= set(RANKS):
            raise ValueError(f"ranks: got {list(self.ranks)}, allowed one or more of {', '.join(RANKS)}")
        if not 1 <= self.top <= MAX_TOP:
            raise ValueError(f"top: got {self.top}, allowed 1..{MAX_TOP}")


class Answering(ABC):
    """Answers queries; its methods may be called from several threads."""

    def __init__(
        self, scorer: Scorer, data: DataConfig, calibration: Calibration | None, card: Mapping[str, Any] | None
    ) -> None:
        """Make it of the scorer of the taxa that answers may name."""
        self.scorer, self.data, self.calibration = scorer, data, calibration
        self.card: Mapping[str, Any] = dict(card or {})
        self.threads = 1  # of the search in a library
        self._checklist = Checklist(scorer.taxonomy)
        self._remembered = lru_cache(_CHECKLISTS)(self._checklist.resolve)

    @abstractmethod
    def _answer(self, query: str, items: Sequence[tuple[Prepared, Options]], subset: Subset | None) -> list[Answer]:
        """Answer queries that are asked with the same modalities and among the same taxa."""

    @abstractmethod
    def _check(self, query: str) -> None:
        """Raise ValueError for modalities that cannot be asked with."""

    def _resolved(self, names: tuple[str, ...]) -> Subset:
        """Return what a checklist leaves; a long one is not remembered, so that its memory is given back."""
        return (self._remembered if len(names) <= _SHORT else self._checklist.resolve)(names)

    @property
    def taxonomy(self) -> Taxonomy:
        """Return the model's taxonomy."""
        return self.scorer.taxonomy

    def taxa(self) -> list[dict[str, Any]]:
        """Every taxon that an answer may name: rank, name and lineage (rank -> name), coarse ranks first."""
        found = []
        for rank, lineages in zip(RANKS, self.taxonomy.lineages, strict=True):
            for row in lineages.tolist():
                names = dict(zip(RANKS, self.taxonomy.lineage_names(row), strict=True))
                lineage = {above: name for above, name in names.items() if name is not None}
                found.append({"rank": rank, "name": names[rank], "lineage": lineage})
        return found

    def prepare(self, query: Query, views: Sequence[np.ndarray] | None = None) -> Prepared | QueryError:
        """Decode and check one query (`serve.answers.query`); `views` are its photos where they are decoded."""
        return prepare(query, self.data, views)

    def identify(
        self,
        queries: Sequence[Query],
        *,
        threshold: float = THRESHOLD,
        ranks: Sequence[str] = RANKS,
        subset: Sequence[str] | None = None,
        top: int = TOP,
        within: float = WITHIN,
    ) -> list[Answer | QueryError]:
        """Answer queries, in their order; what is wrong with one of them is its own answer.

        Args:
            queries: specimens.
            threshold: probability, 0..1; the answer is the deepest rank that reaches it.
            ranks: those to answer at and to tell.
            subset: a checklist: names of taxa, of any rank, among which to choose.
            top: taxa told per rank.
            within: share of nucleotides by which the references of the consensus may differ.

        Raises:
            ValueError: for options out of range (`Options`), never for a query.
        """
        names = None if subset is None else tuple(subset)
        options = Options(threshold=threshold, ranks=tuple(ranks), subset=names, top=top, within=within)
        return self.answer([(self.prepare(query), options) for query in queries])

    def answer(self, items: Sequence[tuple[Prepared | QueryError, Options]]) -> list[Answer | QueryError]:
        """Answer prepared queries, each with its own options; an item that is an error already stays one."""
        result: list[Answer | QueryError] = [one for one, _ in items]  # type: ignore[misc]
        groups: dict[tuple[str, tuple[str, ...] | None], list[int]] = {}
        good: dict[int, tuple[Prepared, Options]] = {}
        for row, (one, options) in enumerate(items):
            if isinstance(one, Prepared):
                good[row] = (one, options)
                groups.setdefault((asked_with(one), options.subset), []).append(row)
        for (query, names), rows in groups.items():
            chosen = [good[row] for row in rows]
            try:
                subset = self._ready(query, names)
            except ValueError as error:
                what, _, allowed = str(error).partition("; allowed: ")
                for row, (one, _) in zip(rows, chosen, strict=True):
                    result[row] = QueryError(one.key, what, allowed or SUBSET)
                continue
            for row, answer in zip(rows, self._answer(query, chosen, subset), strict=True):
                result[row] = answer
        return result

    def _ready(self, query: str, names: tuple[str, ...] | None) -> Subset | None:
        """Return the taxa among which to choose, None = all.

        Raises ValueError when none is known, and where the model was
        calibrated, but not for such queries: then nobody knows what its answers are worth.
        """
        self._check(query)
        subset = None if names is None else self._resolved(names)
        if subset is not None and subset.leaves is None:
            raise ValueError(
                f"subset: got {len(names or ())} names, none of them a taxon of this model{_meant(subset)}"
                f"; allowed: {SUBSET}"
            )
        return subset


def asked_with(item: Prepared) -> str:
    """Return the query that a specimen can be asked with: "image", "dna" or "fused"."""
    return "fused" if item.views and item.dna else "image" if item.views else "dna"


def _meant(subset: Subset) -> str:
    """Return what the first unknown names may stand for."""
    told = [
        f"{name} (perhaps {', '.join(others)})" if others else name
        for name, others in subset.restriction.unknown.items()
    ]
    return f": {', '.join(told)}" if told else ""
