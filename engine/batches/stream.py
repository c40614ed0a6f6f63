"""Between the blocks that tasks make and the batches that a consumer takes: what could not be used is named and
counted, rows are put together by the batch, and a thread works ahead. No Ray, no torch.
"""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import numpy as np

log = logging.getLogger(__name__)

MAX_NAMED = 1000  # specimens of a run that are named one by one when they cannot be read whole

T = TypeVar("T")
Columns = dict[str, np.ndarray]


class ProblemLog:
    """Names what could not be used of a specimen, once a run, and counts it per epoch and kind."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[str]] = {}  # per epoch; kind = "image damaged", "dna unreadable", ...
        self._named: set[tuple[str, str]] = set()

    def add(self, epoch: int, columns: Columns) -> None:
        """Take the rows of one epoch, columns of `Prepare`; a new epoch closes the one before."""
        if epoch not in self.counts:
            self.close()
            self.counts[epoch] = Counter()
        for row in np.flatnonzero(columns["problem"] != "").tolist():
            key, problem = str(columns["key"][row]), str(columns["problem"][row])
            self.counts[epoch].update(part.partition(": ")[0] for part in problem.split("; "))
            if (key, problem) not in self._named and len(self._named) < MAX_NAMED:
                self._named.add((key, problem))
                log.warning("specimen %s: %s", key, problem)

    def close(self) -> None:
        """Log the counts of the latest epoch, when there are any."""
        if self.counts and (counts := self.counts[epoch := max(self.counts)]):
            summary = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
            log.warning("epoch %d: members that could not be used: %s", epoch, summary)


def rebatched(
    blocks: Iterator[tuple[int, Columns]], batch_size: int, problems: ProblemLog
) -> Generator[Columns, None, None]:
    """Blocks of any length -> `batch_size` rows at a time, the last maybe fewer; what is yielded is no view of a block
    of the object store, unless it is a whole one."""
    parts: list[Columns] = []
    missing = batch_size
    for epoch, block in blocks:
        problems.add(epoch, block)
        first, count = 0, len(block["key"])
        while first < count:
            last = min(count, first + missing)
            parts.append({name: values[first:last] for name, values in block.items()})
            missing -= last - first
            first = last
            if not missing:
                yield _joined(parts)
                parts, missing = [], batch_size
    problems.close()
    if parts:
        yield _joined(parts)


def _joined(parts: list[Columns]) -> Columns:
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ahead(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The items of `source`, made by a thread at most `depth` ahead. Closing ends the thread and closes the source."""
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(kind: str, item: Any) -> None:
        """Wait for room; give up when the consumer has stopped."""
        while not stop.is_set():
            try:
                return items.put((kind, item), timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        """Move the source into the queue; its end and its errors travel the same way."""
        try:
            for item in source:
                put("item", item)
                if stop.is_set():
                    break
            put("end", None)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            put("error", error)
        finally:
            source.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=fill, name="batches ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = items.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        stop.set()
        thread.join(timeout=60)  # it may wait for the block of a running task
