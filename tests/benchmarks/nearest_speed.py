"""Time, memory and slope of the search among all references, beside VSEARCH and minimap2 in the same run.

    python -m tests.benchmarks.nearest_speed BARCODES.parquet --keep LIBRARY [--queries 1000] [--others 300]
        [--conditions whole 4x 100+2%] [--sizes 10000 100000]

Of every condition: ms a query in bulk with one and two threads (wall, and CPU) and their parallel efficiency; one query
alone, median and 95th percentile, and whether its first hit is that of the bulk. --others: queries that VSEARCH
(`--maxaccepts 1 --maxrejects 32 --id 0.6`) and minimap2 (`-x asm20`) get, loading (a run with one query) taken off.
--sizes: bulk time with libraries drawn from the train split. To switch AVX-512 off:
NUMBA_CPU_NAME=x86-64-v3 NUMBA_CPU_FEATURES= python -m tests.benchmarks.nearest_speed ...
"""

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.nearest_accuracy import open_library
from tests.benchmarks.nearest_queries import damaged, named, read
from train.evaluation.classical import write_fasta
from train.reference import Hits, Library

TOOLS = {
    "vsearch 1/32": "vsearch --usearch_global {asked} --db {references} --id 0.6 --maxaccepts 1 --maxrejects 32 "
    "--minseqlength 20 --strand both --userfields query+target+id --userout {out} --threads 2",
    "minimap2 asm20": "minimap2 -x asm20 -t 2 -o {out} {references} {asked}",
}


def timed(library: Library, queries: Sequence[str], threads: int) -> tuple[Hits, float, float]:
    """Hits, and ms a query of wall and of CPU time."""
    start, cpu = time.perf_counter(), time.process_time()
    hits = library.search(queries, threads=threads)
    wall, busy = time.perf_counter() - start, time.process_time() - cpu
    return hits, 1000 * wall / len(queries), 1000 * busy / len(queries)


def alone(library: Library, queries: Sequence[str], hits: Hits) -> tuple[float, float, float]:
    """Median and 95th percentile in ms of one query at a time, and the share in % whose hits are those of the bulk."""
    each, same = [], []
    for row, query in enumerate(queries):
        start = time.perf_counter()
        found = library.search([query])
        each.append(1000 * (time.perf_counter() - start))
        mine = slice(hits.start[row], hits.start[row + 1])
        same.append(
            np.array_equal(found.reference, hits.reference[mine])
            and np.array_equal(found.difference, hits.difference[mine])
        )
    return float(np.median(each)), float(np.percentile(each, 95)), 100 * float(np.mean(same))


def tool_ms(name: str, references: Path, queries: Sequence[str]) -> float:
    """Wall ms a query of a program with two threads, loading taken off."""
    with tempfile.TemporaryDirectory() as place:
        asked, out = Path(place) / "asked", Path(place) / "out"

        def run(some: Sequence[str]) -> float:
            write_fasta(asked, [str(row) for row in range(len(some))], some)
            command = TOOLS[name].format(asked=asked, references=references, out=out).split()
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - start

        return 1000 * (run(queries) - run(queries[:1])) / max(1, len(queries) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("barcodes", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=100)
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--sizes", nargs="*", type=int, default=[])
    parser.add_argument("--conditions", nargs="+", default=["whole", "4x", "300", "100", "100+2%"])
    options = parser.parse_args()
    kept = options.keep is not None and options.keep.exists()
    library = open_library(None if kept else read(options.barcodes, "train"), options.keep)
    queries = named(read(options.barcodes, "test"), options.queries)
    library.search(queries.barcodes[:128], threads=2)
    arrays = {
        "planes": library.planes.arrays().values(),
        "index": (library.index.offsets, library.index.postings),
        "letters": (library.letters, library.starts),
    }
    sizes = {name: sum(array.nbytes for array in some) / 2**20 for name, some in arrays.items()}
    sizes["records"] = library.records.nbytes / 2**20
    print(", ".join(f"{name} {size:,.0f} MiB" for name, size in sizes.items()), flush=True)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print("| query | 1 thread (CPU) | 2 threads (CPU) | efficiency, % | alone: median | 95% | same hits, % |")
    print("|---" * 7 + "|")
    for condition in options.conditions:
        asked = damaged(queries, condition)
        _, one, one_cpu = timed(library, asked, 1)
        hits, two, two_cpu = timed(library, asked, 2)
        median, late, same = alone(library, asked[: options.alone], hits)
        cells = [f"{one:.2f} ({one_cpu:.2f})", f"{two:.2f} ({two_cpu:.2f})", f"{50 * one / two:.0f}"]
        cells += [f"{median:.2f}", f"{late:.2f}", f"{same:.0f}"]
        print(f"| {condition} | {' | '.join(cells)} |", flush=True)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    with tempfile.TemporaryDirectory() as place:
        fasta = Path(place) / "references"
        tools = [name for name in TOOLS if options.others and shutil.which(name.split()[0])]
        if tools:
            names = list(map(str, range(library.num_haplotypes)))
            write_fasta(fasta, names, [library.barcode(row) for row in range(len(names))])
        for name in tools:
            cells = [
                f"{condition} {tool_ms(name, fasta, damaged(queries, condition)[: options.others]):.2f}"
                for condition in options.conditions
            ]
            print(f"{name}, ms a query: {', '.join(cells)}", flush=True)
    for size in options.sizes:
        smaller = open_library(read(options.barcodes, "train", size), None)
        cells = [
            f"{condition} {timed(smaller, damaged(queries, condition), 2)[1]:.2f}" for condition in options.conditions
        ]
        print(f"{size:,} drawn, 2 threads, ms a query: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
