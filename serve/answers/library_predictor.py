"""A barcode library that answers without a model.

    predictor = LibraryPredictor.load("libraries/bold")
    answers = predictor.identify([Query("s1", dna="AACATTATATTTT...")], threshold=0.95)

The rules lie beside the library as calibration.json (`train.evaluation.calibrate_library`).
"""

from collections.abc import Sequence
from pathlib import Path

from engine.config import DataConfig
from engine.store.shards import file_sha256
from serve.answers import compose
from serve.answers.answer import Answer
from serve.answers.answering import Answering, Options
from serve.answers.candidates import Subset
from serve.answers.compose import Read
from serve.answers.query import Prepared
from train import reference
from train.inference.calibration import FILE, Calibration
from train.inference.library_alone import QUERY, LibraryScorer
from train.models.checkpoint import code_version
from train.reference import Library
from train.reference.library import read_manifest


class LibraryPredictor(Answering):
    """Answers barcodes with one library; made by `load`."""

    def __init__(self, source: LibraryScorer, calibration: Calibration | None, card: dict[str, object]) -> None:
        """Make it of an open library and its rules; without rules probabilities are shares of scores."""
        super().__init__(source.scorer, DataConfig(), calibration, card)
        self.source, self.library = source, source.library

    @classmethod
    def load(cls, folder: Path | str, *, threads: int = 1) -> "LibraryPredictor":
        """Open a library and its rules.

        Args:
            folder: of `serve.library`.
            threads: of the search.

        Raises:
            ValueError: what `Library.load` raises; rules of another format, or of another version of the library.
        """
        place = Path(folder)
        library, manifest = Library.load(place).prepared(), read_manifest(place)
        path = place / FILE
        calibration = Calibration.load(path) if path.is_file() else None
        fitted = None if calibration is None else calibration.library
        if fitted is not None and fitted.checksum != manifest["checksum"]:
            raise ValueError(
                f"calibration {path}: got one of {fitted}, allowed one of this version of the library; fit it anew "
                f"with python -m serve.library calibrate {place}"
            )
        about = {
            "name": place.resolve().name,
            "version": manifest["version"],
            "checksum": manifest["checksum"],
            "records": len(library.records),
            "licence": library.licence,
        }
        card = {
            "name": about["name"],
            "version": str(manifest["version"]),
            "step": None,
            "weights_sha256": None,
            "taxonomy_sha256": library.taxonomy.fingerprint,
            "calibration_sha256": file_sha256(path) if calibration is not None else None,
            "calibration_library": str(fitted) if fitted else None,
            "code_version": code_version(),
            "licence": library.licence,
            "library": about,
        }
        predictor = cls(LibraryScorer(library), calibration, card)
        predictor.threads = threads
        return predictor

    def _check(self, query: str) -> None:
        """Refuse photos: there is no model that could read them."""
        if query != "dna":
            raise ValueError(
                "query: got a photo, which a library alone cannot read; allowed: one barcode, or a model (--checkpoint)"
            )

    def _answer(self, query: str, items: Sequence[tuple[Prepared, Options]], subset: Subset | None) -> list[Answer]:
        """Answer barcodes among the same taxa."""
        hits = self.library.search([one.dna for one, _ in items], threads=self.threads)
        rules = None if self.calibration is None else self.calibration.queries[QUERY]
        read = Read(query=query, calibrated=rules is not None, subset=subset, card=self.card)
        read.references = reference.answers(self.library, hits)
        read.consensus = reference.consensus(self.library, hits, [options.within for _, options in items])
        among = None if subset is None else subset.leaves
        answers: list[Answer] = []
        for chunk in self.source.scored(self.source.combiner.of(hits), among):
            rows = items[len(answers) : len(answers) + len(chunk.answers.path)]
            answers += compose.answers(self.scorer, chunk, rules, read, rows, len(answers))
        return answers
