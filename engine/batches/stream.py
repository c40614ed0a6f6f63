"""Between the blocks that tasks make and the batches that a consumer takes. No Ray, no torch.

What could not be used is named and counted, rows are put together by the batch, and a thread works ahead.
"""

import contextlib
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
    """Yield blocks of any length as `batch_size` rows at a time, the last maybe fewer.

    What is yielded is no view of a block of the object store, unless it is a whole one.
    """
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


def _fill(source: Iterator[T], items: "queue.Queue[tuple[str, Any]]", stop: threading.Event) -> None:
    """Move a source into a queue; its end and its errors travel the same way. `stop`: nobody takes items any more."""

    def put(kind: str, item: Any) -> None:
        """Wait for room; give up when the consumer has stopped."""
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return items.put((kind, item), timeout=0.1)

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


def ahead(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items of `source`, which a thread makes `depth` ahead. Closing ends it and closes the source."""
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(source, items, stop), name="batches ahead", daemon=True)
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
