"""The classical tools on one split of shards: accuracy clean and damaged, time per query, memory, exact options.

    python -m tests.benchmarks.classical SHARDS [--queries 2000] [--conditions clean 1x 100nt] [--tools sintax ...]

References: all cleaned barcodes of the train split, queries: some of --split; the same for every tool. Top-1 in %,
species micro/macro and genus, family, order micro; no hit is wrong at every rank. `6mer` is the 6-mer nearest neighbour
of `train.evaluation.peers`, `library` the reference library beside them. Time: wall and CPU, --threads threads, a run
with one query taken off, so that loading the references does not count; memory: the program's highest resident.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np

from engine.specimens.taxonomy import RANKS
from tests.benchmarks.barcode_queries import Task, damaged, make_task, read
from tests.benchmarks.classical_tools import COMMANDS, run_tools
from tests.benchmarks.reference_accuracy import library_labels, library_of, scored
from train.evaluation.peers import kmer_peer
from train.reference import Library

OURS = ("6mer", "library")
Spent = tuple[float, float]  # seconds of wall and of CPU


def ours(name: str, task: Task, asked: list[str], threads: int, library: Library) -> tuple[np.ndarray, Spent]:
    """Labels of the library or the 6-mer neighbour, and what they took."""
    start, cpu = time.perf_counter(), time.process_time()
    if name == "library":
        labels = library_labels(library, task, asked, threads)
    else:
        labels = kmer_peer(asked, task.references.barcodes, task.reference_labels)
    return labels, (time.perf_counter() - start, time.process_time() - cpu)


def line(task: Task, condition: str, name: str, labels: np.ndarray, spent: Spent, memory: int) -> str:
    """One row of the table."""
    everybody = np.ones(len(labels), dtype=bool)
    *coarser, species = (scored(task, labels, rank, everybody) for rank in range(len(RANKS)))
    cells = [f"{species[0]:.2f}/{species[1]:.2f}", *(f"{value[0]:.2f}" for value in reversed(coarser))]
    none = f"{(labels < 0).all(axis=1).mean():.2%}"
    each = " (".join(f"{1000 * seconds / len(labels):.2f}" for seconds in spent)
    return f"| {condition} | {name} | {' | '.join(cells)} | {none} | {each}) | {memory / 2**20:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=2000, help="how many; 0 = all")
    parser.add_argument("--conditions", nargs="+", default=("clean", "1x", "4x", "100nt"))
    parser.add_argument("--tools", nargs="+", default=(*COMMANDS, *OURS), choices=(*COMMANDS, *OURS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    task = make_task(read(options.shards, options.split, options.queries), read(options.shards, "train"))
    library = library_of(task)
    programs = [tool for tool in options.tools if tool in COMMANDS]
    print("| condition | tool | species micro/macro | genus | family | order | no answer | ms a query (CPU) | MiB |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    commands: dict[str, str] = {}
    for condition in options.conditions:
        asked = damaged(task.queries, condition)
        for name in programs:
            run = run_tools(asked, task.references.barcodes, task.reference_labels, [name], options.threads)[name]
            commands[name] = run.command
            print(line(task, condition, name, run.labels, (run.seconds, run.cpu_seconds), run.memory), flush=True)
        for name in (name for name in options.tools if name in OURS):
            labels, spent = ours(name, task, asked, options.threads, library)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(line(task, condition, name, labels, spent, memory), flush=True)
    print("\n" + "\n".join(f"{name}: `{command}`" for name, command in commands.items()))
    count = f"{len(task.queries.barcodes)} queries, {len(task.references.barcodes)} references"
    cores = f"{options.threads} threads, {os.cpu_count()} cores"
    print(f"{count}, {cores}; MiB of `6mer` and `library`: this process's")


if __name__ == "__main__":
    main()
