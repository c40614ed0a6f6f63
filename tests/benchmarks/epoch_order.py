"""Seconds and memory of one epoch's order, beside the quadratic sampler of the paper's release.

    python -m tests.benchmarks.epoch_order [--specimens 5000000] [--windows 4096 16384 65536] [--rounds 7]

Labels have BIOSCAN-5M's counts (tests/benchmarks/label_sets.py). Each round measures, in turn, every window size, the
share of one of eight workers, and the quadratic sampler (tests/benchmarks/authors_sampler.py) at 2,000 to 16,000
specimens. Ours runs in a process of its own that loads the labels from a file, so its greatest resident memory counts
labels, interpreter and libraries. The quadratic sampler's time is extrapolated by the power fitted to its medians.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from engine.batches.sampling import EpochPlan
from tests.benchmarks.authors_sampler import quadratic
from tests.benchmarks.label_sets import bioscan_labels

QUADRATIC = (2000, 4000, 8000, 16000)


def measure_ours(file: str, window: int, epoch: int, workers: int, answer: Connection) -> None:
    """In a fresh process: send wall seconds, CPU seconds and peak resident bytes of one epoch's order."""
    plan = EpochPlan(labels=np.load(file), seed=0, global_batch_size=256, window=window)
    wall, cpu = time.perf_counter(), time.process_time()
    rows = plan.worker_order(epoch, 0, workers)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    assert rows.shape == (plan.steps_per_epoch, 256 // workers)
    answer.send((*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def ours(file: str, window: int, epoch: int, workers: int = 1) -> tuple[float, float, float]:
    """Run `measure_ours` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure_ours, args=(file, window, epoch, workers, there))
    process.start()
    there.close()
    found: tuple[float, float, float] = here.recv()
    process.join()
    return found


def quadratic_seconds(labels: np.ndarray, count: int, seed: int) -> float:
    """CPU seconds of the quadratic sampler on a random sample of `count` specimens."""
    sample = labels[np.random.default_rng(seed).choice(len(labels), count, replace=False)]
    start = time.process_time()
    order = quadratic(sample, seed)
    assert len(np.unique(order)) == count
    return time.process_time() - start


def told(values: list[float], unit: str = "s") -> str:
    """Median and range."""
    return f"{statistics.median(values):8.2f} {unit}  [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specimens", type=int, default=5_000_000)
    parser.add_argument("--windows", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    labels = bioscan_labels(options.specimens)
    cases = [(window, 1) for window in options.windows] + [(options.windows[0], 8)]
    found: dict[tuple[int, int], list[tuple[float, float, float]]] = {case: [] for case in cases}
    theirs: dict[int, list[float]] = {count: [] for count in QUADRATIC}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "labels.npy")
        np.save(file, labels)
        for epoch in range(options.rounds):
            for case in cases:
                found[case].append(ours(file, case[0], epoch, case[1]))
            for count in QUADRATIC:
                theirs[count].append(quadratic_seconds(labels, count, epoch))
    print(f"{options.specimens} specimens, {options.rounds} rounds: median [range]; {os.cpu_count()} cores")
    for case in cases:
        name = f"window {case[0]}" + (f", one of {case[1]} workers" if case[1] > 1 else "")
        wall, cpu, memory = (list(values) for values in zip(*found[case], strict=True))
        print(f"{name:32s} wall {told(wall)}  CPU {told(cpu)}  peak {max(memory) / 2**30:.2f} GiB")
    medians = [statistics.median(theirs[count]) for count in QUADRATIC]
    power, factor = np.polyfit(np.log(QUADRATIC), np.log(medians), 1)
    for count in QUADRATIC:
        print(f"{f'quadratic, {count}':32s} CPU {told(theirs[count])}")
    for count in (900_000, options.specimens):
        hours = np.exp(factor) * count**power / 3600
        square = medians[-1] * (count / QUADRATIC[-1]) ** 2 / 3600
        print(
            f"quadratic, extrapolated to {count}: {hours:.1f} h by N^{power:.2f}; {square:.1f} h by N^2 from the last"
        )


if __name__ == "__main__":
    main()
