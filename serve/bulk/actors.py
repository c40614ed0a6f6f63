"""What a worker of a bulk identification does: load the model once, answer the questions of one task after another."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.formats.source import SpecimenSource
from engine.store.storage import Location
from serve.answers.answer import Answer, Query, QueryError
from serve.bulk.columns import TOP, table_of
from serve.bulk.contaminants import open_contaminants, with_contaminants
from serve.bulk.plan import Plan
from serve.models.registry import ResolvedModel

if TYPE_CHECKING:
    from train.reference import Library

log = logging.getLogger(__name__)

CARD = "card.json"  # in the plan's folder: what answered


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """Describe what answers the questions, and how."""

    model: ResolvedModel | None  # None = the library alone
    library: str  # folder, "" = none
    threshold: float
    subset: tuple[str, ...]  # names of taxa that may be answered, () = all
    contaminants: str = ""  # file or library of what is no specimen, "" = none
    within: float  # share of nucleotides by which the references of the consensus may differ
    device: str
    threads: int  # of torch and of the library's search, per worker


class Answerer:
    """Answers the questions of tasks, by their place in a list; a stage of Ray Data, built once per worker."""

    def __init__(self, asking: BulkOptions, plan: Plan, source: SpecimenSource, tasks: Sequence[int]) -> None:
        """`tasks`: those of the plan that are not done."""
        self.asking, self.plan, self.source, self.tasks = asking, plan, source, tasks

    def arguments(self) -> tuple[Any, ...]:
        """Return what another worker is built from."""
        return self.asking, self.plan, self.source, self.tasks

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Turn column item (places in the list) into answered (questions) and error (why the model cannot be loaded).

        That comes back as a row, since an exception would lose whose fault it was on its way through Ray.
        """
        rows: list[dict[str, Any]] = []
        for place in batch["item"].to_pylist():
            try:
                rows.append({"answered": self.answer(self.tasks[place]), "error": ""})
            except ValueError as error:
                rows.append({"answered": 0, "error": str(error)})
        return pa.Table.from_pylist(rows)

    @cached_property
    def predictor(self) -> Any:
        """Load the model when it is first asked. Raises ValueError as `Predictor.load`."""
        import torch

        from serve.answers.answering import Answering
        from serve.answers.library_predictor import LibraryPredictor
        from serve.answers.predictor import Predictor

        torch.set_num_threads(self.asking.threads)
        model, threads = self.asking.model, self.asking.threads
        predictor: Answering = (
            LibraryPredictor.load(self.asking.library, threads=threads)
            if model is None
            else Predictor.load(
                model.path,
                library=self.asking.library or None,
                device=self.asking.device,
                name=model.name,
                version=model.version,
                threads=threads,
            )
        )
        card = json.dumps(dict(predictor.card), indent=1, ensure_ascii=False)
        Location.parse(self.plan.folder / CARD).write_atomically(card.encode())
        return predictor

    @cached_property
    def contaminants(self) -> "Library | None":
        """Open the contaminants when they are first asked."""
        return open_contaminants(self.asking.contaminants) if self.asking.contaminants else None

    def answer(self, task: int) -> int:
        """Answer a task's questions; its part appears when it is whole. Returns how many there are."""
        place = self.plan.part(task)
        asked = self.plan.ask(task).to_pylist()
        if not place.is_file():
            queries = [self._query(str(number), **one) for number, one in enumerate(asked)]
            answers = self._answers(queries)
            table = table_of(answers)
            if self.contaminants is not None:
                table = with_contaminants(table, answers, self.contaminants, self.asking.threads)
            with Location.parse(place).writing() as file:
                pq.write_table(table, file, compression="zstd")
        return len(asked)

    def _query(self, key: str, image: str | None, barcode: str | None) -> Query | QueryError:
        try:
            photos = (self.source.load_image(image),) if image else ()
        except (ValueError, OSError) as error:
            return QueryError(key, f"photo: {error}", "a photo that can be read")
        return Query(key, photos, barcode)

    def _answers(self, given: Sequence[Query | QueryError]) -> list[Answer | QueryError]:
        queries = [one for one in given if isinstance(one, Query)]
        predictor = self.predictor
        try:
            found = self._identify(predictor, queries)
        except Exception as error:  # one record must not cost the others their answers
            log.warning("%d questions together failed (%r), now one by one", len(queries), error)
            found = [self._alone(predictor, one) for one in queries]
        answered = iter(found)
        return [next(answered) if isinstance(one, Query) else one for one in given]

    def _alone(self, predictor: Any, query: Query) -> Answer | QueryError:
        try:
            return self._identify(predictor, [query])[0]
        except Exception as error:
            return QueryError(query.key, f"failed: {error!r}", "none of this: please report it, it is the program's")

    def _identify(self, predictor: Any, queries: Sequence[Query]) -> list[Answer | QueryError]:
        asking = self.asking
        subset = asking.subset or None
        return predictor.identify(queries, threshold=asking.threshold, subset=subset, top=TOP, within=asking.within)
