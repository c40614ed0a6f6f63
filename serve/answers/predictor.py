"""The fused predictor: a checkpoint, perhaps a reference library, and `identify`. No Ray, no HTTP.

    predictor = Predictor.load("runs/NAME", library="library")
    answers = predictor.identify([Query("m1", (photo,), "AACATTATATTTT...")], threshold=0.95)

A query is answered as `train.evaluate` answers a specimen: the same views and tokens, the same roll-up, the same
calibration. Several photos of a specimen count as the mean of their features.

Legend: N queries, D embedding, R ranks.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from engine.config import DataConfig
from engine.specimens.taxonomy import Taxonomy
from engine.store.shards import file_sha256
from serve.answers import compose
from serve.answers.answer import Answer, Query, QueryError
from serve.answers.answering import MAX_TOP, THRESHOLD, TOP, Answering, Options
from serve.answers.candidates import Subset, open_scorer
from serve.answers.compose import Read
from serve.answers.query import Prepared
from train import reference
from train.inference import evidence, scope
from train.inference.calibration import FILE as CALIBRATION
from train.inference.calibration import POOLED, WITH_LIBRARY, Calibration, Calibrator, FittedLibrary, Scope
from train.inference.evidence import Answers
from train.inference.experts import LIBRARY, PHOTO, Inputs, barcode_quality, sharpness
from train.inference.looks import PHOTO_FAR, Photos, looks
from train.inference.nearest import Combiner, Nearest
from train.inference.pool import Pool
from train.inference.scoring import Scorer
from train.models import checkpoint
from train.models.checkpoint import WEIGHTS
from train.reference import Encoder, Library
from train.reference.library import read_manifest

__all__ = ["MAX_TOP", "THRESHOLD", "TOP", "Embedding", "Options", "Predictor"]

log = logging.getLogger(__name__)

_NAMES = {"fused": POOLED}  # of queries whose rules have another name


@dataclass(frozen=True, slots=True)
class Embedding:
    """Unit features float32 [D] of one query; None where it lacks what they are made of."""

    key: str
    image: np.ndarray | None
    dna: np.ndarray | None
    fused: np.ndarray | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        parts = {"image": self.image, "dna": self.dna, "fused": self.fused}
        return {"key": self.key} | {name: None if part is None else part.tolist() for name, part in parts.items()}


class Predictor(Answering):
    """Answers queries with one model; made by `load`."""

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
        super().__init__(scorer, data, calibration, card)
        self.model, self.library = model, library
        self._combiner = Combiner(library, scorer.taxonomy) if library is not None else None
        kept = Scope() if calibration is None else calibration.scope
        self._scope = scope.opened(kept, scorer.taxonomy)
        self._photos = Photos(kept.photos) if kept.photos else None
        self._encoder = Encoder(model, data)

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
            path: a run's folder, or its model/.
            library: folder of a reference library; None = none.
            name: what answers call the model (default: the run's name).
            version: of the model (default: the first 12 digits of the weights' sha256).
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
        known = None if library is None else Library.load(library).prepared()
        scorer = open_scorer(loaded, weights, device)
        predictor = cls(model, loaded.config.data, scorer, calibration=calibration, library=known, card=card)
        predictor.threads = threads
        return predictor

    def _check(self, query: str) -> None:
        """Refuse, where the model was calibrated, what it was not calibrated for: nobody knows what that is worth."""
        if self.calibration is not None and _NAMES.get(query, query) not in self.calibration.queries:
            known = ", ".join(name for name in ("image", "dna", POOLED) if name in self.calibration.queries)
            raise ValueError(f"query: got {query}, which this model was never measured with; allowed: {known}")

    def embed(self, queries: Sequence[Query]) -> list[Embedding | QueryError]:
        """Return unit features of queries, in their order; `fused` of those with photo and barcode."""
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
        """Return unit features [N, D] of photos and of barcodes, rows of zeros where there are none."""
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
        """Return the photo's part in the fused feature, [N] in 0..1: what the gate lets through of each."""
        device = self._encoder.device
        first, second = torch.from_numpy(image).to(device), torch.from_numpy(dna).to(device)
        gate = self.model.gate(first, second)
        ours, others = (gate * first).norm(dim=1), ((1 - gate) * second).norm(dim=1)
        return (ours / (ours + others)).cpu().numpy()

    def _answer(self, query: str, items: Sequence[tuple[Prepared, Options]], subset: Subset | None) -> list[Answer]:
        """Answer queries that are asked with the same modalities and among the same taxa.

        By the pool where one was fitted; photo and barcode of a model that was not calibrated by its gate.
        """
        prepared = [one for one, _ in items]
        image, dna = self._features(prepared)
        features = {"image": image, "dna": dna}.get(query)
        combiner = self._combiner if query != "image" else None
        calibrator = self._calibrator(query)
        read = Read(query=query, calibrated=calibrator is not None, subset=subset, card=self.card)
        if query == "fused":
            read.disagreement = self._disagreement(image, dna)
        nearest = None
        if combiner is not None:
            hits = combiner.library.search([one.dna for one in prepared], threads=self.threads)
            read.references = reference.answers(combiner.library, hits)
            read.consensus = reference.consensus(combiner.library, hits, [options.within for _, options in items])
            nearest = combiner.of(hits)
        among = None if subset is None else subset.leaves
        if calibrator is not None and calibrator.pool is not None:
            inputs = _inputs(prepared, calibrator.pool, image, dna, nearest)
            chunks = evidence.pooled(self.scorer, inputs, calibrator.pool, among=among)
        else:
            if features is None:
                features = self._fuse(image, dna)
                read.share = self._image_share(image, dna)
            chunks = evidence.scored(self.scorer, features, among=among)
        answers: list[Answer] = []
        far = self._far(query, prepared)
        for chunk in chunks:
            chunk = replace(chunk, answers=far(chunk.answers, len(answers)))
            rows = items[len(answers) : len(answers) + len(chunk.answers.path)]
            answers += compose.answers(self.scorer, chunk, calibrator, read, rows, len(answers))
        return answers

    def _far(self, query: str, prepared: Sequence[Prepared]) -> Callable[[Answers, int], Answers]:
        """Return what tells answers, those of the queries from some place on, how far these are from what is known."""
        if query == "image" and self._photos is not None:
            numbers = [np.mean([looks(view) for view in one.views], axis=0) for one in prepared]
            photo = self._photos.far(np.array(numbers, dtype=np.float32))
            return lambda answers, first: replace(
                answers, evidence=answers.evidence | {PHOTO_FAR: photo[first : first + len(answers.path)]}
            )
        if query == "image" or self._scope is None or self._backed(query):
            return lambda answers, first: answers
        near = self._scope.find([one.dna for one in prepared], threads=self.threads)
        return lambda answers, first: scope.told(answers, near, first)

    def _backed(self, query: str) -> bool:
        """Say whether a query is answered by the rules that read what a library found."""
        name = f"{_NAMES.get(query, query)}{WITH_LIBRARY}"
        return self._combiner is not None and self.calibration is not None and name in self.calibration.queries

    def _calibrator(self, query: str) -> Calibrator | None:
        """Return the rules of a query."""
        if self.calibration is None:
            return None
        return self.calibration.queries.get(f"{_NAMES.get(query, query)}{WITH_LIBRARY * self._backed(query)}")

    def _disagreement(self, image: np.ndarray, dna: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and flags [N]; None where the model was not calibrated for it."""
        rule = None if self.calibration is None else self.calibration.disagreement
        if rule is None:
            return None
        score = rule.score(evidence.agreement(self.scorer, image, dna))
        return score, score >= rule.flag_from


def _inputs(
    prepared: Sequence[Prepared], pool: Pool, image: np.ndarray, dna: np.ndarray, nearest: Nearest | None
) -> Inputs:
    """Return what the experts of a pool read of specimens that have it all."""
    measured = barcode_quality([one.dna for one in prepared])
    if PHOTO in pool.experts:
        sharp = [np.mean([sharpness(view) for view in one.views]) for one in prepared]
        measured["sharpness"] = np.array(sharp, dtype=np.float32).astype(np.float64)  # as evaluation keeps it
    return Inputs(image if PHOTO in pool.experts else None, dna, nearest if LIBRARY in pool.experts else None, measured)


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
    """Return what answers say of the library; warns where it is not the one that the calibration was fitted with."""
    manifest = read_manifest(folder)
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
