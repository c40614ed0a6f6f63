"""Names from the nearest reference, at every length and damage, beside VSEARCH; time, share of exact answers.

    python -m tests.benchmarks.nearest_accuracy BARCODES.parquet [--queries 1000] [--references 100000] [--keep LIBRARY]
        [--vsearch 0] [--conditions whole 4x ...] [--split test] [--first 0] [--seed 0]

References: the train split, or as many drawn from it. Queries: specimens of --split that are named by binomials, from
--first on. Right names in % for species / genus / family with the 95% interval of a bootstrap over equal barcodes.
VSEARCH: `--id 0.5 --maxaccepts 8 --maxrejects 256 --minwordmatches 0`, its best identity, both strands. --keep: the
folder to keep the library in, or to find it in.
"""

import argparse
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.specimens.taxonomy import RANKS
from tests.benchmarks.nearest_queries import CONDITIONS, Barcodes, damaged, named, read, right_labels
from train.evaluation.classical import write_fasta
from train.reference import Library, nearest_labels

SHOWN = ("species", "genus", "family")
VSEARCH = "--id 0.5 --maxaccepts 8 --maxrejects 256 --minwordmatches 0 --minseqlength 20 --strand both --maxhits 8"


def open_library(references: Barcodes | None, folder: Path | None) -> Library:
    """Build the library, or read the kept one; say what that took."""
    start = time.perf_counter()
    if references is not None:
        built = Library.build(references.records, references.barcodes)
        print(f"library of {len(references.barcodes):,} built in {time.perf_counter() - start:.1f} s", flush=True)
        if folder is None:
            return built
        built.save(folder)
        start = time.perf_counter()
    library = Library.load(folder or "", verify=False)
    loaded = time.perf_counter() - start
    library.search([library.barcode(0)])
    print(f"library loaded in {loaded:.1f} s, first answer after {time.perf_counter() - start:.1f} s", flush=True)
    return library


def interval(right: np.ndarray, groups: np.ndarray, resamples: int = 1000) -> str:
    """Mean of right answers [N] in % and the 95% interval of a bootstrap over groups."""
    size, good = np.bincount(groups), np.bincount(groups, weights=right)
    drawn = np.random.default_rng(0).integers(0, len(size), (resamples, len(size)))
    low, high = np.percentile(100 * good[drawn].sum(axis=1) / size[drawn].sum(axis=1), (2.5, 97.5))
    return f"{100 * right.mean():.1f} [{low:.1f}, {high:.1f}]"


def vsearch_labels(references: Path, queries: Sequence[str], rows: np.ndarray, threads: int) -> np.ndarray:
    """The labels of VSEARCH's best hit, int64 [N, R]; `rows` int64 [M, R] are those of the references."""
    found = np.full((len(queries), len(RANKS)), -1)
    with tempfile.TemporaryDirectory() as place:
        asked, out = Path(place) / "asked", Path(place) / "out"
        write_fasta(asked, [str(row) for row in range(len(queries))], queries)
        command = [
            "vsearch",
            "--usearch_global",
            str(asked),
            "--db",
            str(references),
            *VSEARCH.split(),
            "--userfields",
            "query+target+id",
            "--userout",
            str(out),
            "--threads",
            str(threads),
        ]
        subprocess.run(command, check=True, capture_output=True)
        best = np.full(len(queries), -1.0)
        for line in out.read_text().splitlines():
            query, target, identity = line.split("\t")
            if float(identity) > best[int(query)]:
                best[int(query)] = float(identity)
                found[int(query)] = rows[int(target)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("barcodes", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--references", type=int, default=0, help="drawn of the train split; 0 = all")
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS)
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--vsearch", type=int, default=0, help="queries that VSEARCH gets, too")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    kept = options.keep is not None and options.keep.exists()
    library = open_library(None if kept else read(options.barcodes, "train", options.references), options.keep)
    queries = named(read(options.barcodes, options.split), options.queries, options.first)
    groups = np.unique(queries.barcodes, return_inverse=True)[1]
    library.search(queries.barcodes[:128], threads=options.threads)
    nearest_labels(library, library.search(queries.barcodes[:2]))
    ranks = [RANKS.index(rank) for rank in SHOWN]
    print(
        f"{len(queries.barcodes)} queries, {library.num_haplotypes:,} different references, {options.threads} threads"
    )
    print(f"| query | {' | '.join(SHOWN)} | exact, % | ms a query (CPU) | VSEARCH |\n{'|---' * 7}|")
    with tempfile.TemporaryDirectory() as place:
        fasta = Path(place) / "references"
        rows = np.full((library.num_haplotypes, len(RANKS)), -1)
        if options.vsearch:
            held = library.records["haplotype"].to_numpy()
            rows[held[held >= 0][::-1]] = library.labels[held >= 0][::-1]
            write_fasta(fasta, list(map(str, range(len(rows)))), [library.barcode(row) for row in range(len(rows))])
        for condition in options.conditions:
            asked = damaged(queries, condition, options.seed)
            start, cpu = time.perf_counter(), time.process_time()
            hits = library.search(asked, threads=options.threads)
            each = [
                1000 * (end - begin) / len(asked)
                for end, begin in ((time.perf_counter(), start), (time.process_time(), cpu))
            ]
            right = right_labels(library, queries, nearest_labels(library, hits))
            cells = [interval(right[:, rank], groups) for rank in ranks]
            beside = ""
            if options.vsearch:
                some = queries.take(np.arange(min(options.vsearch, len(asked))))
                theirs = right_labels(library, some, vsearch_labels(fasta, asked[: len(some.barcodes)], rows, 2))
                beside = " / ".join(f"{100 * theirs[:, rank].mean():.1f}" for rank in ranks)
            cells += [f"{100 * hits.exact.mean():.1f}", f"{each[0]:.2f} ({each[1]:.2f})", beside]
            print(f"| {condition} | {' | '.join(cells)} |", flush=True)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
