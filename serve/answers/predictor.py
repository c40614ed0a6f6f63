"""The fused predictor: a checkpoint, perhaps a reference library, and `identify`. No Ray, no HTTP.

    predictor = Predictor.load("runs/NAME", library="library")
    answers = predictor.identify([Query("m1", (photo,), "AACATTATATTTT...")], threshold=0.95)

A query is answered as `train.evaluate` answers a specimen: the same views and tokens, the same roll-up, the same
calibration. Several photos of a specimen count as the mean of their features.

Legend: N queries, D embedding, R ranks.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from engine.config import DataConfig
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import file_sha256
from serve.answers import compose
from serve.answers.answer import Answer, Query, QueryError
from serve.answers.candidates import Checklist, Subset, open_scorer
from serve.answers.compose import Read
from serve.answers.query import Prepared, prepare
from train import reference
from train.inference import evidence
from train.inference.calibration import FILE as CALIBRATION
from train.inference.calibration import WITH_LIBRARY, Calibration, Calibrator, FittedLibrary
from train.inference.combination import Combiner
from train.inference.scoring import Scorer
from train.models import checkpoint
from train.models.checkpoint import WEIGHTS
from train.reference import Encoder, Library
from train.reference.library import read_manifest
from train.reference.search import DISTANCES

log = logging.getLogger(__name__)

THRESHOLD = 0.95
TOP = 5
MAX_TOP = 100
SUBSET = "names of taxa as GET /v1/taxa lists them"
_CHECKLISTS = 64  # remembered


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a query is to be answered. Raises ValueError saying what, got and allowed."""

    threshold: float = THRESHOLD
    ranks: tuple[str, ...] = RANKS
    subset: tuple[str, ...] | None = None  # names of taxa, of any rank, among which to choose
    top: int = TOP

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold: got {self.threshold}, allowed 0..1")
        if not self.ranks or not set(self.ranks) <= set(RANKS):
            raise ValueError(f"ranks: got {list(self.ranks)}, allowed one or more of {', '.join(RANKS)}")
        if not 1 <= self.top <= MAX_TOP:
            raise ValueError(f"top: got {self.top}, allowed 1..{MAX_TOP}")


@dataclass(frozen=True, slots=True)
class Embedding:
    """Unit features float32 [D] of one query; None where it lacks what they are made of."""

    key: str
    image: np.ndarray | None
    dna: np.ndarray | None
    fused: np.ndarray | None

    def to_dict(self) -> dict[str, Any]:
        parts = {"image": self.image, "dna": self.dna, "fused": self.fused}
        return {"key": self.key} | {name: None if part is None else part.tolist() for name, part in parts.items()}


class Predictor:
    """Answers queries with one model; made by `load`. Its methods may be called from several threads."""

    def __init__(
        self,
        model: Any,
        data: DataConfig,
        scorer: Scorer,
        *,
        calibration: Calibration | None = None,
        library: Library | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """`model` in evaluation mode."""
        self.model, self.data, self.scorer = model, data, scorer
        self.threads = 1  # of the search in the library
        self.calibration, self.library = calibration, library
        self._combiner = Combiner(library, scorer.taxonomy) if library is not None else None
        self.card: Mapping[str, Any] = dict(card or {})
        self._encoder = Encoder(model, data)
        self._checklist = Checklist(scorer.taxonomy)
        self._subset = lru_cache(_CHECKLISTS)(self._checklist.resolve)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        library: Path | str | None = None,
        device: str = "cpu",
        name: str = "",
        version: str = "",
        threads: int = 1,
    ) -> "Predictor":
        """Load a checkpoint (a run's folder, or its model/) and a reference library.

        Args:
            name, version: what answers call the model; by default the run's name and the first 12 digits of the
                weights' sha256.
            device: torch device of the towers.
            threads: of the search in the library.

        Raises:
            ValueError: what `train.models.checkpoint.load` and `Library.load` raise; a calibration of another taxonomy.
        """
        loaded = checkpoint.load(path)
        model = loaded.model.to(device)
        weights = file_sha256(loaded.path / WEIGHTS)
        calibration = _calibration(loaded.path, loaded.taxonomy)
        fitted = None if calibration is None else calibration.library
        card = {
            "name": name or loaded.config.run.name or loaded.path.resolve().name,
            "version": version or weights[:12],
            "step": loaded.meta.get("step"),
            "weights_sha256": weights,
            "taxonomy_sha256": loaded.taxonomy.fingerprint,
            "calibration_sha256": None if calibration is None else file_sha256(loaded.path / CALIBRATION),
            "calibration_library": str(fitted) if fitted else None,
            "code_version": checkpoint.code_version(),
            "licence": str(loaded.meta.get("licence", "not stated")),
            "library": None if library is None else _library_card(Path(library), fitted),
        }
        known = None if library is None else Library.load(library)
        scorer = open_scorer(loaded, weights, device)
        predictor = cls(model, loaded.config.data, scorer, calibration=calibration, library=known, card=card)
        predictor.threads = threads
        return predictor

    @property
    def taxonomy(self) -> Taxonomy:
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

    def prepare(self, query: Query) -> Prepared | QueryError:
        """Decode and check one query (`serve.answers.query`)."""
        return prepare(query, self.data)

    def identify(
        self,
        queries: Sequence[Query],
        *,
        threshold: float = THRESHOLD,
        ranks: Sequence[str] = RANKS,
        subset: Sequence[str] | None = None,
        top: int = TOP,
    ) -> list[Answer | QueryError]:
        """Answer queries, in their order; what is wrong with one of them is its own answer.

        Args:
            threshold: probability, 0..1; the answer is the deepest rank that reaches it.
            ranks: those to answer at and to tell.
            subset: a checklist: names of taxa, of any rank, among which to choose.
            top: taxa told per rank.

        Raises:
            ValueError: for options out of range (`Options`), never for a query.
        """
        names = None if subset is None else tuple(subset)
        options = Options(threshold=threshold, ranks=tuple(ranks), subset=names, top=top)
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
        """The taxa among which to choose, None = all. Raises ValueError when none is known, and where the model was
        calibrated, but not for such queries: then nobody knows what its answers are worth."""
        if self.calibration is not None and query not in self.calibration.queries:
            known = ", ".join(self.calibration.queries)
            raise ValueError(f"query: got {query}, which this model was never measured with; allowed: {known}")
        subset = None if names is None else self._subset(names)
        if subset is not None and subset.leaves is None:
            raise ValueError(
                f"subset: got {len(names or ())} names, none of them a taxon of this model{_meant(subset)}"
                f"; allowed: {SUBSET}"
            )
        return subset

    def embed(self, queries: Sequence[Query]) -> list[Embedding | QueryError]:
        """Unit features of queries, in their order; `fused` of those with photo and barcode."""
        return self.embed_prepared([self.prepare(query) for query in queries])

    def embed_prepared(self, items: Sequence[Prepared | QueryError]) -> list[Embedding | QueryError]:
        """As `embed`, of prepared queries."""
        good = [item for item in items if isinstance(item, Prepared)]
        image, dna = self._features(good)
        fused = self._fuse(image, dna)
        found: dict[int, Embedding] = {}
        for row, item in enumerate(good):
            parts = (image[row] if item.views else None, dna[row] if item.dna else None)
            both = fused[row] if item.views and item.dna else None
            found[id(item)] = Embedding(item.key, *parts, both)
        return [found[id(item)] if isinstance(item, Prepared) else item for item in items]

    def _features(self, items: Sequence[Prepared]) -> tuple[np.ndarray, np.ndarray]:
        """Unit features [N, D] of photos and of barcodes, rows of zeros where there are none."""
        dna = self._encoder.dna([item.dna for item in items])
        views = [view for item in items for view in item.views]
        each = self._encoder.images(views)
        if len(views) == len(items) and all(len(item.views) == 1 for item in items):
            return each, dna
        image = np.zeros_like(dna)
        np.add.at(image, np.repeat(np.arange(len(items)), [len(item.views) for item in items]), each)
        several = np.array([len(item.views) > 1 for item in items], dtype=bool)
        image[several] = F.normalize(torch.from_numpy(image[several]), dim=1).numpy()
        return image, dna

    @torch.inference_mode()
    def _fuse(self, image: np.ndarray, dna: np.ndarray) -> np.ndarray:
        device = self._encoder.device
        fused = self.model.fuse(torch.from_numpy(image).to(device), torch.from_numpy(dna).to(device))
        return fused.float().cpu().numpy()

    @torch.inference_mode()
    def _image_share(self, image: np.ndarray, dna: np.ndarray) -> np.ndarray:
        """The photo's part in the fused feature, [N] in 0..1: the length of what the gate lets through of each."""
        device = self._encoder.device
        first, second = torch.from_numpy(image).to(device), torch.from_numpy(dna).to(device)
        gate = self.model.gate(first, second)
        ours, others = (gate * first).norm(dim=1), ((1 - gate) * second).norm(dim=1)
        return (ours / (ours + others)).cpu().numpy()

    def _answer(self, query: str, items: Sequence[tuple[Prepared, Options]], subset: Subset | None) -> list[Answer]:
        """Answer queries that are asked with the same modalities and among the same taxa."""
        prepared = [one for one, _ in items]
        image, dna = self._features(prepared)
        features = {"image": image, "dna": dna}.get(query)
        combiner = self._combiner if query != "image" else None
        calibrator = self._calibrator(query, combiner is not None)
        read = Read(query=query, calibrated=calibrator is not None, subset=subset, card=self.card)
        if features is None:
            features = self._fuse(image, dna)
            read.share = self._image_share(image, dna)
            read.disagreement = self._disagreement(image, dna)
        library = None
        if combiner is not None:
            hits = combiner.library.search([one.dna for one in prepared], threads=self.threads)
            read.references = reference.answers(combiner.library, hits)
            if calibrator is not None and calibrator.combination is not None:
                library = (combiner.of(hits), calibrator.combination)
        answers: list[Answer] = []
        among = None if subset is None else subset.leaves
        for chunk in evidence.scored(self.scorer, features, among=among, library=library):
            rows = items[len(answers) : len(answers) + len(chunk.answers.path)]
            answers += compose.answers(self.scorer, chunk, calibrator, read, rows, len(answers))
        return answers

    def _calibrator(self, query: str, backed: bool) -> Calibrator | None:
        """The rules of a query; those that read what a library found where there are such."""
        if self.calibration is None:
            return None
        queries = self.calibration.queries
        return queries.get(f"{query}{WITH_LIBRARY}" if backed else query) or queries.get(query)

    def _disagreement(self, image: np.ndarray, dna: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and flags [N]; None where the model was not calibrated for it."""
        rule = None if self.calibration is None else self.calibration.disagreement
        if rule is None:
            return None
        score = rule.score(evidence.agreement(self.scorer, image, dna))
        return score, score >= rule.flag_from


def asked_with(item: Prepared) -> str:
    """The query that a specimen can be asked with: "image", "dna" or "fused"."""
    return "fused" if item.views and item.dna else "image" if item.views else "dna"


def _calibration(folder: Path, taxonomy: Taxonomy) -> Calibration | None:
    """None where the model was not calibrated. Raises ValueError for a calibration of another taxonomy."""
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    calibration = Calibration.load(path)
    if calibration.taxonomy != taxonomy.fingerprint:
        raise ValueError(
            f"calibration {path}: got one of taxonomy {calibration.taxonomy[:12]}, allowed the model's, "
            f"{taxonomy.fingerprint[:12]}; fit it anew with train.evaluate --calibration"
        )
    return calibration


def _library_card(folder: Path, fitted: FittedLibrary | None) -> dict[str, Any]:
    """What answers say of the library; warns where it is not the one that the calibration was fitted with."""
    manifest = read_manifest(folder)
    if fitted is not None and fitted.distances != DISTANCES:
        raise ValueError(
            f"calibration: got one fitted on distances of version {fitted.distances}, allowed {DISTANCES}, what the search "
            f"in a library gives now; fit it anew with train.evaluate --calibration --library {folder}"
        )
    name, records = folder.resolve().name, manifest.get("records")
    if fitted is not None and fitted.is_other(manifest["checksum"], records):
        log.warning(
            f"library {folder}: got {name} of {records} specimens, but the probabilities were fitted with {fitted}; to "
            f"fit them with this one: train.evaluate --calibration --library {folder}"
        )
    return {
        "name": name,
        "version": manifest["version"],
        "checksum": manifest["checksum"],
        "records": records,
        "licence": str(manifest.get("licence", "not stated")),
    }


def _meant(subset: Subset) -> str:
    """What the first unknown names may stand for."""
    told = [
        f"{name} (perhaps {', '.join(others)})" if others else name
        for name, others in subset.restriction.unknown.items()
    ]
    return f": {', '.join(told)}" if told else ""
