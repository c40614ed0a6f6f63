"""Speed and accuracy of the reference library against VSEARCH at the size of a whole barcode database.

    python -m tests.benchmarks.reference_scale SHARDS [--queries 10000] [--references 100000] [--binomial] [--keep DIR]

References: the train split (or --references of it drawn at random, or only those named by binomials); queries: val and
test together. Whole path of the library: clean the raw barcodes, turn, search, align, name; loading apart. VSEARCH: the
same cleaned barcodes, a run with one query taken off. Both with --threads. Accuracy: as `reference_accuracy`.
--keep: the folder to keep the library in, or to find it in.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.signals.barcodes import clean
from engine.specimens.taxonomy import RANKS
from tests.benchmarks.barcode_queries import Side, Task, binomial_only, make_task, read
from tests.benchmarks.classical_tools import run_tools
from tests.benchmarks.reference_accuracy import library_labels, table
from train.reference import Library

_MIB = 1 << 20


def held(library: Library) -> float:
    """MiB of a library's arrays and records, wherever they are."""
    arrays = (library.letters, library.starts, library.index.offsets, library.index.postings, library.labels)
    return (sum(array.nbytes for array in arrays) + library.records.nbytes) / _MIB


def open_library(task: Task, folder: Path | None) -> Library:
    """Build the library, or read the kept one; says what that took."""
    start = time.perf_counter()
    if folder is None or not folder.exists():
        library = Library.build(task.references.index, task.references.barcodes)
        print(f"library built in {time.perf_counter() - start:.0f} s", flush=True)
        if folder is None:
            return library
        library.save(folder)
        start = time.perf_counter()
    library = Library.load(folder, verify=False)
    library.search(task.queries.barcodes[:1])
    print(f"library loaded in {time.perf_counter() - start:.1f} s", flush=True)
    return library


def timed_library(library: Library, task: Task, threads: int) -> np.ndarray:
    """Labels of all queries; says the time and the memory of the whole path."""
    raw = [sequence.lower() for sequence in task.queries.barcodes]
    library_labels(library, task, task.queries.barcodes[:64], threads)  # labels and rows of the library are made once
    start, cpu = time.perf_counter(), time.process_time()
    labels = library_labels(library, task, [clean(sequence) for sequence in raw], threads)
    wall, busy = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"library: {1000 * wall / len(raw):.2f} ms a query ({1000 * busy / len(raw):.2f} of CPU), {threads} threads; "
        f"{held(library):,.0f} MiB of arrays and records",
        flush=True,
    )
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--references", type=int, default=0)
    parser.add_argument("--binomial", action="store_true")
    parser.add_argument("--tools", nargs="*", default=["vsearch_1_32"])
    parser.add_argument("--untimed", action="store_true", help="no second run with one query: loading is in the time")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    references = read(options.shards, "train", options.references)
    parts = [read(options.shards, split) for split in ("val", "test")]
    queries = Side(pa.concat_tables([part.index for part in parts]), [one for part in parts for one in part.barcodes])
    queries = queries.take(np.sort(np.random.default_rng(0).permutation(len(queries.barcodes))[: options.queries]))
    task = make_task(queries, binomial_only(references) if options.binomial else references)
    print(f"{len(task.queries.barcodes)} queries, {len(task.references.barcodes)} references")
    library = open_library(task, options.keep)
    found = {"library": timed_library(library, task, options.threads)}
    for tool in options.tools:
        run = run_tools(
            task.queries.barcodes,
            task.references.barcodes,
            task.reference_labels,
            [tool],
            options.threads,
            timed=not options.untimed,
        )[tool]
        each, busy = (1000 * value / len(task.queries.barcodes) for value in (run.seconds, run.cpu_seconds))
        cost = (
            f"{each:.2f} ms a query ({busy:.2f} of CPU), loading {run.load_seconds:.0f} s, {run.memory / _MIB:,.0f} MiB"
        )
        print(f"{tool}: {cost}: {run.command}", flush=True)
        found[tool] = run.labels
    if options.tools:
        names = [*options.tools, "library"]
        print(table(task, {"clean": {name: found[name] for name in names}}, list(range(len(RANKS))), options.resamples))


if __name__ == "__main__":
    main()
