"""Names from the nearest reference, at every length and damage: one round of search, the product's, only the wide one.

    python -m tests.benchmarks.nearest_accuracy BARCODES.parquet [--queries 1000] [--references 100000] [--keep LIBRARY]
        [--vsearch 0] [--conditions whole 4x ...] [--split test] [--first 0] [--seed 0]

References: the train split, or as many drawn from it. Queries: specimens of --split that are named by binomials, from
--first on. Right names in % for species / genus / family; of the product's also the 95% interval of a bootstrap over
equal barcodes. Missed: queries whose nearest reference is over half an edit farther than the wide round's. Time: CPU of
this process, ms a query. VSEARCH: its best identity, with the options below. --keep: the folder to keep the library
in, or to find it in.
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
from tests.benchmarks.classical_tools import write_fasta
from tests.benchmarks.nearest_queries import CONDITIONS, Barcodes, damaged, named, read, right_labels
from train.reference import Hits, Library, SearchOptions, nearest_labels
from train.reference.search import FIRST, WIDE

SHOWN = [RANKS.index(rank) for rank in ("species", "genus", "family")]
SEARCHES: dict[str, SearchOptions | None] = {"first": FIRST, "product": None, "wide": WIDE}
VSEARCH = "--id 0.5 --maxaccepts 8 --maxrejects 256 --minwordmatches 0 --minseqlength 20 --strand both --maxhits 8"
HEADER = (
    "| query | first | ms | **product** | ms | wide | ms | missed: first | product | searched again | nearer then "
    "| VSEARCH |"
)


def open_library(barcodes: Path, references: int, folder: Path | None) -> Library:
    """Build the library, or read the kept one; say what that took."""
    start = time.perf_counter()
    if folder is None or not folder.exists():
        drawn = read(barcodes, "train", references)
        built = Library.build(drawn.records, drawn.barcodes)
        print(f"library of {len(drawn.barcodes):,} built in {time.perf_counter() - start:.1f} s", flush=True)
        if folder is None:
            return built
        built.save(folder)
        start = time.perf_counter()
    library = Library.load(folder, verify=False)
    print(f"library loaded in {time.perf_counter() - start:.1f} s", flush=True)
    return library


def percent(right: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000) -> str:
    """Means of right answers [N, 3] in %; with groups [N] each with the 95% interval of a bootstrap over these."""
    means = [f"{100 * mean:.1f}" for mean in right.mean(axis=0)]
    if groups is None:
        return " / ".join(means)
    size = np.bincount(groups)
    drawn = np.random.default_rng(0).integers(0, len(size), (resamples, len(size)))
    for rank, mean in enumerate(means):
        good = np.bincount(groups, weights=right[:, rank])
        low, high = np.percentile(100 * good[drawn].sum(axis=1) / size[drawn].sum(axis=1), (2.5, 97.5))
        means[rank] = f"{mean} [{low:.1f}, {high:.1f}]"
    return " / ".join(means)


def nearest(hits: Hits) -> np.ndarray:
    """Return the least difference of every query, float64 [N], infinite where nothing was found."""
    least = np.full(len(hits.length), np.inf)
    found = np.flatnonzero(np.diff(hits.start))
    least[found] = hits.difference[hits.start[found]]
    return least


def vsearch_labels(references: Path, queries: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Return the labels of VSEARCH's best hit, int64 [N, R]; `rows` int64 [H, R] are those of the references."""
    found = np.full((len(queries), len(RANKS)), -1)
    with tempfile.TemporaryDirectory() as place:
        asked, out = Path(place) / "asked", Path(place) / "out"
        write_fasta(asked, [str(row) for row in range(len(queries))], queries)
        command = ["vsearch", "--usearch_global", str(asked), "--db", str(references), *VSEARCH.split()]
        command += ["--userfields", "query+target+id", "--userout", str(out), "--threads", "2"]
        subprocess.run(command, check=True, capture_output=True)
        best = np.full(len(queries), -1.0)
        for line in out.read_text().splitlines():
            query, target, identity = line.split("\t")
            if float(identity) > best[int(query)]:
                best[int(query)] = float(identity)
                found[int(query)] = rows[int(target)]
    return found


def haplotype_labels(library: Library) -> np.ndarray:
    """Return the labels of each haplotype's first record, int64 [H, R]."""
    held = library.records["haplotype"].to_numpy()
    rows = np.full((library.num_haplotypes, len(RANKS)), -1)
    rows[held[held >= 0][::-1]] = library.labels[held >= 0][::-1]
    return rows


def measure(library: Library, queries: Barcodes, asked: list[str]) -> list[str]:
    """Search the queries in a condition every way; the cells of the table."""
    groups = np.unique(queries.barcodes, return_inverse=True)[1]
    cells, hits = [], {}
    for name, options in SEARCHES.items():
        start = time.process_time()
        hits[name] = library.search(asked, options)
        each = 1000 * (time.process_time() - start) / len(asked)
        right = right_labels(library, queries, nearest_labels(library, hits[name]))[:, SHOWN]
        cells += [percent(right, groups if options is None else None), f"{each:.1f}"]
    first, product, least = (nearest(hits[name]) for name in SEARCHES)
    again = hits["product"].rounds > 1
    nearer = (product < first - 0.5)[again].mean() if again.any() else 0.0
    shares = [(first > least + 0.5).mean(), (product > least + 0.5).mean(), again.mean(), nearer]
    return [*cells, *(f"{100 * share:.1f}%" for share in shares)]


def main() -> None:
    """Print the table."""
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
    options = parser.parse_args()
    library = open_library(options.barcodes, options.references, options.keep)
    queries = named(read(options.barcodes, options.split), options.queries, options.first)
    nearest_labels(library, library.search(queries.barcodes[:256], WIDE))  # what is made at the first call
    print(f"{len(queries.barcodes)} queries, {library.num_haplotypes:,} different references, one thread")
    print(f"{HEADER}\n{'|---' * (HEADER.count('|') - 1)}|")
    with tempfile.TemporaryDirectory() as place:
        fasta, rows = Path(place) / "references", haplotype_labels(library)
        if options.vsearch:
            write_fasta(fasta, list(map(str, range(len(rows)))), [library.barcode(row) for row in range(len(rows))])
        for condition in options.conditions:
            asked = damaged(queries, condition, options.seed)
            cells, beside = measure(library, queries, asked), ""
            if options.vsearch:
                some = queries.take(np.arange(min(options.vsearch, len(asked))))
                theirs = vsearch_labels(fasta, asked[: len(some.barcodes)], rows)
                beside = percent(right_labels(library, some, theirs)[:, SHOWN])
            print(f"| {' | '.join([condition, *cells, beside])} |", flush=True)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
