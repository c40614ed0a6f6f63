"""Bulk identification of many barcodes beside VSEARCH's top hit: whole commands, start-up and index load counted.

    python -m tests.benchmarks.bulk_speed SHARDS --library LIBRARY --checkpoint RUN [--queries 100000] [--threads 2]

Queries: all barcodes of val and test of SHARDS, then copies of them with 1% of the letters substituted, until there are
--queries different ones, as one FASTA file. Ours: `python -m serve.bulk` with --threads workers of one thread. VSEARCH:
its top hit among the library's records, one FASTA record each, with --threads; with --vsearch-queries N it gets the
first N only, and the time for all of them is reckoned from that and from a run with one query (and said to be).

Memory: anonymous pages of all processes of a command together, looked up twice a second; of ours also when a quarter,
half, three quarters and all of the tasks were done. The library's index is mapped from disk: `mapped` is what of it
was resident at most.
"""

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from engine.signals.degrade import BarcodePreset, degrade_barcode
from serve.bulk.job import UNFINISHED
from serve.bulk.plan import load_plan
from tests.benchmarks.barcode_queries import read
from tests.benchmarks.classical_tools import COMMANDS, write_fasta
from train.reference import Library

MIB = 1 << 20
LOOK_S = 0.5
MARK = "TAXAFUSE_BENCHMARK"  # in the environment of a command and so of all that it starts
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """What a command took."""

    seconds: float = 0.0
    anonymous: int = 0  # bytes, at most
    mapped: int = 0  # bytes of files, at most
    cpu: dict[int, float] = field(default_factory=dict)  # seconds by process, as last seen
    at: dict[int, int] = field(default_factory=dict)  # percent of the tasks done -> anonymous bytes


def measure(command: Sequence[str], done: Callable[[], float] = lambda: 0.0) -> Cost:
    """Run a command to its end. `done`: share of its work, looked up on the way. RuntimeError when it fails."""
    mark, cost = f"{MARK}={uuid.uuid4().hex}", Cost()
    name, _, value = mark.partition("=")
    start = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {name: value}, stdout=sys.stderr)
    while process.poll() is None:
        anonymous, mapped = _memory(mark.encode(), cost)
        cost.anonymous, cost.mapped = max(cost.anonymous, anonymous), max(cost.mapped, mapped)
        share = done()
        for percent in (25, 50, 75, 99):
            if 100 * share >= percent:
                cost.at.setdefault(percent, anonymous)
        time.sleep(LOOK_S)
    cost.seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command[:4]} failed with {process.returncode}")
    return cost


def _memory(mark: bytes, cost: Cost) -> tuple[int, int]:
    """Anonymous and mapped bytes of all processes with the mark; their CPU time goes into `cost`."""
    anonymous = mapped = 0
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            if mark not in (place / "environ").read_bytes().split(b"\0"):
                continue
            told = (place / "smaps_rollup").read_text()
            fields = (place / "stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        pages = {name: int(count) << 10 for name, count in re.findall(r"(Pss_\w+):\s+(\d+) kB", told)}
        anonymous += pages.get("Pss_Anon", 0)
        mapped += pages.get("Pss_File", 0)
        cost.cpu[int(place.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    return anonymous, mapped


def make_queries(shards: Path, count: int) -> list[str]:
    """Different barcodes: those of val and test, then copies with 1% of the letters substituted."""
    known = [one for split in ("val", "test") for one in read(shards, split).barcodes]
    rng = np.random.default_rng(0)
    found, few = dict.fromkeys(known), BarcodePreset.only(substitution=0.01)
    while len(found) < count:
        found.update(dict.fromkeys(degrade_barcode(one, rng, 1.0, few) for one in known))
    return list(found)[:count]


def bulk(options: argparse.Namespace, queries: Path, out: Path) -> Cost:
    """Our command."""
    command = [
        sys.executable,
        "-m",
        "serve.bulk",
        str(queries),
        "--checkpoint",
        options.checkpoint,
        "--library",
        str(options.library),
        "--out",
        str(out),
        "--workers",
        str(options.threads),
        "--threads",
        "1",
    ]
    state = out.with_name(out.name + UNFINISHED)

    def done() -> float:
        plan = load_plan(state)
        return 1 - len(plan.unfinished()) / plan.tasks if plan and plan.tasks else 0.0

    return measure(command, done)


def vsearch(folder: Path, queries: Sequence[str], library: Library, options: argparse.Namespace) -> tuple[Cost, float]:
    """VSEARCH's command, and the seconds for all queries."""
    haplotypes = [library.barcode(number) for number in range(library.num_haplotypes)]
    held = [number for number in library.records["haplotype"].to_pylist() if number >= 0]
    write_fasta(folder / "references", [str(row) for row in range(len(held))], [haplotypes[number] for number in held])
    print(f"{len(held):,} references, {len(haplotypes):,} different", flush=True)
    del haplotypes
    count = min(options.vsearch_queries or len(queries), len(queries))

    def run(some: Sequence[str]) -> Cost:
        write_fasta(folder / "asked", [str(row) for row in range(len(some))], some)
        places = {"queries": folder / "asked", "references": folder / "references", "out": folder / "hits"}
        command = [part.format(**places) for part in COMMANDS["vsearch_1_32"]]
        return measure([*command, "--threads", str(options.threads)])

    if count == len(queries):
        cost = run(queries)
        return cost, cost.seconds
    loading, cost = run(queries[:1]), run(queries[:count])
    each = (cost.seconds - loading.seconds) / count
    print(
        f"VSEARCH: {count:,} queries in {cost.seconds:.1f} s, one in {loading.seconds:.1f} s: {1000 * each:.2f} ms "
        "each; the time for all is reckoned",
        flush=True,
    )
    return cost, loading.seconds + each * len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vsearch-queries", type=int, default=0, help="0 = all")
    parser.add_argument("--no-vsearch", action="store_true")
    options = parser.parse_args()
    queries = make_queries(options.shards, options.queries)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_fasta(folder / "queries.fasta", [f"q{row}" for row in range(len(queries))], queries)
        ours = bulk(options, folder / "queries.fasta", folder / "result.parquet")
        table = pq.read_table(folder / "result.parquet", columns=["key", "error", "name"])
        assert table["key"].to_pylist() == [f"q{row}" for row in range(len(queries))]
        named = len(table) - table["name"].null_count
        print(
            f"{len(queries):,} different barcodes, {options.threads} threads; {named:,} named, "
            f"{len(table) - table['error'].null_count:,} errors",
            flush=True,
        )
        rows = [("serve.bulk", ours, ours.seconds)]
        if not options.no_vsearch and shutil.which("vsearch"):
            rows.append(("VSEARCH top hit", *vsearch(folder, queries, Library.load(options.library), options)))
    print("\n| | wall, s | ms a barcode | CPU, s | anonymous, MiB | mapped, MiB |\n|---|---:|---:|---:|---:|---:|")
    for name, cost, seconds in rows:
        print(
            f"| {name} | {seconds:,.1f} | {1000 * seconds / len(queries):.2f} | {sum(cost.cpu.values()):,.0f} | "
            f"{cost.anonymous / MIB:,.0f} | {cost.mapped / MIB:,.0f} |"
        )
    print(
        "\nanonymous MiB of serve.bulk when so many % of the tasks were done: "
        + ", ".join(f"{percent}: {held / MIB:,.0f}" for percent, held in sorted(ours.at.items()))
    )
    ratio = rows[-1][2] / ours.seconds if len(rows) > 1 else math.nan
    print(f"VSEARCH's time / ours: {ratio:.2f}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
