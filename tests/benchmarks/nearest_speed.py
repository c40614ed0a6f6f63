"""Time of the search for the nearest reference: in bulk by threads, and one query alone.

    python -m tests.benchmarks.nearest_speed BARCODES.parquet --keep LIBRARY [--queries 1000] [--rounds 3] [--vsearch 0]

BARCODES and LIBRARY as of `tests.benchmarks.nearest_accuracy`, which makes it. A row a condition: ms a query
in bulk with one thread and with two (least of the rounds, which take turns), their efficiency (time of one / 2 / time
of two), ms of CPU with one, and median and 95th percentile of 200 queries asked alone. --vsearch N: VSEARCH with two
threads on the first N queries of each condition, less its time for one query, which is loading. Names are not found
here. Peak memory at the end holds the mapped pages of the library that were read.
"""

import argparse
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.classical_tools import write_fasta
from tests.benchmarks.nearest_accuracy import VSEARCH
from tests.benchmarks.nearest_queries import CONDITIONS, damaged, named, read
from train.reference import Library

ALONE = 200
HEADER = "| query | 1 thread | 2 threads | efficiency | CPU | alone, median | alone, 95% | VSEARCH |"


def least(rounds: int, *ways: Callable[[], object]) -> list[float]:
    """Return the least seconds of each way, which take turns."""
    seconds = np.full((rounds, len(ways)), np.inf)
    for turn in range(rounds):
        for number, way in enumerate(ways):
            start = time.perf_counter()
            way()
            seconds[turn, number] = time.perf_counter() - start
    return seconds.min(axis=0).tolist()


def vsearch(references: Path, queries: Sequence[str]) -> float:
    """Search once with two threads; return the seconds."""
    with tempfile.TemporaryDirectory() as place:
        asked = Path(place) / "asked"
        write_fasta(asked, [str(row) for row in range(len(queries))], queries)
        command = ["vsearch", "--usearch_global", str(asked), "--db", str(references), *VSEARCH.split()]
        command += ["--blast6out", str(Path(place) / "out"), "--threads", "2"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def row_of(library: Library, asked: Sequence[str], rounds: int) -> list[str]:
    """Return the cells of one condition."""
    one, two = least(rounds, lambda: library.search(asked), lambda: library.search(asked, threads=2))
    start = time.process_time()
    library.search(asked)
    cpu = time.process_time() - start
    alone = [least(1, lambda query=query: library.search([query]))[0] for query in asked[:ALONE]]  # type: ignore[misc]
    figures = [1000 * each / len(asked) for each in (one, two, cpu)] + [
        1000 * float(each) for each in np.percentile(alone, (50, 95))
    ]
    return [f"{figures[0]:.2f}", f"{figures[1]:.2f}", f"{one / 2 / two:.2f}", *(f"{each:.2f}" for each in figures[2:])]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("barcodes", type=Path)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS)
    parser.add_argument("--vsearch", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    library = Library.load(options.keep, verify=False)
    library.search(["ACGT" * 50])
    print(f"loaded, compiled code too, in {time.perf_counter() - start:.1f} s; {library.num_haplotypes:,} references")
    queries = named(read(options.barcodes, options.split), options.queries)
    with tempfile.TemporaryDirectory() as place:
        fasta = Path(place) / "references"
        if options.vsearch:
            rows = range(library.num_haplotypes)
            write_fasta(fasta, list(map(str, rows)), [library.barcode(row) for row in rows])
        print(f"{HEADER}\n{'|---' * (HEADER.count('|') - 1)}|")
        for condition in options.conditions:
            asked = damaged(queries, condition)
            cells = [condition, *row_of(library, asked, options.rounds), ""]
            if options.vsearch:
                loading, whole = vsearch(fasta, asked[:1]), vsearch(fasta, asked[: options.vsearch])
                cells[-1] = f"{1000 * (whole - loading) / options.vsearch:.1f}"
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
