"""Does throughput grow with nodes? Equal work on 1, 2 and 4 data nodes and on 1 and 2 train nodes; the capacity model.

    python -m tests.benchmarks.scaling --out DIR [--rounds 5] [--data-cpu 0.2] [--train-cpu 0.4]

Nodes are network namespaces of this machine (root), each with a CPU quota (cgroups v1), so that the machine's own cores
suffice for all of them and a ratio means something. The quota holds while it is measured: nodes and workers start
without one. Data nodes: the batches that a driver on the head takes from the data engine, as fast as they come. Train
nodes: the steps of a training whose data come from a node without a quota. Configurations are interleaved, in a new
order every round; medians, in brackets least and greatest. `infra.capacity`'s model is calibrated on one node of each
kind and compared with the others. Nothing else should run.
"""

import argparse
import json
import logging
import random
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT)] + [p for p in sys.path if Path(p).resolve() != ROOT / "tests" / "benchmarks"]

from infra.capacity import specimens_per_second, step_seconds  # noqa: E402
from tests.drills.cluster import Cluster, ClusterTraining, authenticate  # noqa: E402
from tests.drills.machines import Network, until  # noqa: E402

CONFIGURATIONS = (("data", 1), ("data", 2), ("data", 4), ("train", 1), ("train", 2))
CALIBRATION = 1  # nodes of the configuration that the model is calibrated on
BATCH, SIDE = 128, 112
COUNTED = 72  # batches that are measured
HELD = 16  # blocks of a batch that a node's data may hold, and so were made before the quota held; with 4, four nodes
# were told to run one or two tasks: Ray Data reserves room for what each may give
STORE_PER_NODE = HELD * BATCH * 2 * 3 * SIDE**2
TRAIN_BATCH, TRAIN_SKIPPED, TRAIN_COUNTED = 64, 2, 8
STORE_BYTES = 400_000_000
TOLERANCE = 0.35


def write_shards(folder: Path) -> Path:
    """Simulated specimens with photos of 256 pixels."""
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest

    if not (folder / "index.parquet").is_file():
        source = open_dataset("simulated", [], seed=0, num_specimens=1200, num_species=16)
        ingest(source, folder, IngestOptions(specimens_per_shard=100, parallel=False, overwrite=True))
    return folder


def drive(shards: str, told: Path) -> None:
    """On the head: take batches; after the first, wait until the harness has set the quotas; write what was seen."""
    import ray

    from engine.batches.pipeline import (
        Specimens,
        cpu_budget,
        label_columns,
        load_index,
        select_split,
        training_batches,
    )
    from engine.batches.sampling import EpochPlan
    from engine.config import DataConfig
    from engine.specimens.taxonomy import Taxonomy

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    index = select_split(load_index([shards]), "train")
    specimens = Specimens.from_index(index, Taxonomy.build(label_columns(index)))
    plan = EpochPlan(labels=specimens.labels, seed=0, global_batch_size=BATCH, lanes=8, window=4096, partners=False)
    data = DataConfig(shards=(shards,), image_size=SIDE, rows_per_task=BATCH, prefetch_batches=1)
    nodes = int(ray.cluster_resources()["CPU"])
    budget = replace(cpu_budget(ray.cluster_resources(), 0, 0.0), object_store_bytes=1.01 * nodes * STORE_PER_NODE)
    warm = 4 * nodes  # every node has started its processes
    skipped = warm + (HELD + 2) * nodes + 4  # also those in the driver's own hands
    total = skipped + COUNTED
    batches = training_batches(specimens, plan, data, (0, total + 4 * nodes), (0, 1), budget)
    started = 0.0
    for number, _ in enumerate(batches, 1):
        if number == warm:
            told.with_suffix(".warm").touch()
            until(told.with_suffix(".quota").exists, "the quotas", 60)
        if number == skipped:
            started = time.perf_counter()
        if number == total:
            told.write_text(json.dumps({"rate": COUNTED * BATCH / (time.perf_counter() - started)}))
            break
    batches.close()  # type: ignore[attr-defined]


def measure_data(network: Network, out: Path, nodes: int, cpus: float) -> float:
    """Specimens/s of so many data nodes."""
    told = out / f"data-{nodes}-{time.monotonic_ns()}.json"
    names = [f"data-{number}" for number in range(nodes)]
    cluster = Cluster(network, None, out / "logs", {name: (1, "") for name in names}, STORE_BYTES)
    try:
        cluster.start()
        command = [sys.executable, str(Path(__file__).resolve()), "--drive", str(out / "shards"), str(told)]
        cluster.submit(command, out / "logs" / "drive.log")
        until(told.with_suffix(".warm").exists, "warm data nodes", 120)
        for name in names:
            cluster.machines[name].quota(cpus)
        told.with_suffix(".quota").touch()
        until(lambda: told.exists() and told.read_text(), "the measurement", 240)
        return float(json.loads(told.read_text())["rate"])
    finally:
        cluster.destroy()


def measure_train(network: Network, out: Path, nodes: int, cpus: float) -> float:
    """Specimens/s of so many train nodes at the same global batch."""
    names = [f"train-{number}" for number in range(nodes)]
    shape = {"data": (2, "")} | {name: (1, "train") for name in names}
    cluster = Cluster(network, None, out / "logs", shape, STORE_BYTES)
    try:
        cluster.start()
        run = ClusterTraining(
            cluster,
            out / "shards",
            out / "runs",
            f"train-{nodes}-{time.monotonic_ns()}",
            "run.epochs=30",
            f"run.num_workers={nodes}",
            f"run.global_batch_size={TRAIN_BATCH}",
            "data.image_size=64",
            "model.dna=kmer_transformer",
            "model.dna_width=256",
            "model.dna_depth=2",
            "data.kmer_stride=4",
            "run.checkpoint_steps=0",
            "run.checkpoint_every=100",
            "run.validate_every=100",
            "run.log_every=1000",
            "data.rows_per_task=64",
            "run.threads=1",
        )
        run.wait_for(3)
        for name in names:
            cluster.machines[name].quota(cpus)
        first = run.wait_for(run.wait_for(0) + TRAIN_SKIPPED)
        started = time.perf_counter()
        last = run.wait_for(first + TRAIN_COUNTED)
        return (last - first) * TRAIN_BATCH / (time.perf_counter() - started)
    finally:
        cluster.destroy()


MEASURE = {"data": measure_data, "train": measure_train}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def predictions(rows: list[dict[str, Any]], quota: dict[str, float]) -> dict[tuple[str, int], float]:
    """What the capacity model says of every configuration, from the medians of the calibration ones."""
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        known = statistics.median(row["rate"] for row in rows if (row["kind"], row["nodes"]) == (kind, CALIBRATION))
        for nodes in (nodes for other, nodes in CONFIGURATIONS if other == kind):
            if kind == "data":  # no step to wait for
                per_cpu = known / (CALIBRATION * quota["data"])
                found[kind, nodes] = specimens_per_second(nodes * quota["data"], per_cpu, BATCH, 1e-9)
            else:  # no end of data
                step = step_seconds(TRAIN_BATCH, nodes, CALIBRATION / known, 0.0, 0.0)
                found[kind, nodes] = specimens_per_second(1e9, known, TRAIN_BATCH, step)
    return found


def table(rows: list[dict[str, Any]], quota: dict[str, float]) -> tuple[str, bool]:
    """Markdown, and whether the model held: within the measured interval or TOLERANCE of the median."""
    expected, held = predictions(rows, quota), True
    lines = [
        "| nodes | CPU each | specimens/s | of one node, same round | the model says | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for kind, nodes in expected:
        own = {row["round"]: row["rate"] for row in rows if (row["kind"], row["nodes"]) == (kind, nodes)}
        one = {row["round"]: row["rate"] for row in rows if (row["kind"], row["nodes"]) == (kind, CALIBRATION)}
        ratios = [rate / one[number] for number, rate in own.items() if number in one]
        said, median = expected[kind, nodes], statistics.median(own.values())
        good = min(own.values()) <= said <= max(own.values()) or abs(said - median) <= TOLERANCE * median
        held &= good
        how = "calibrated here" if nodes == CALIBRATION else f"{100 * (said / median - 1):+.0f}%"
        cells = [f"{nodes} {kind}", f"{quota[kind]:g}", spread(list(own.values())), spread(ratios), f"{said:.1f}", how]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines), held


def main() -> int:
    """Measure; 1 when the model missed."""
    if sys.argv[1:2] == ["--drive"]:
        drive(sys.argv[2], Path(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=sorted(MEASURE), default=sorted(MEASURE))
    parser.add_argument("--data-cpu", type=float, default=0.2)
    parser.add_argument("--train-cpu", type=float, default=0.4)
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it started is to end with it
    authenticate(out)
    write_shards(out / "shards")
    quota = {"data": options.data_cpu, "train": options.train_cpu}
    rows: list[dict[str, Any]] = []
    with Network() as network:
        for number in range(options.rounds):
            wanted = [one for one in CONFIGURATIONS if one[0] in options.kinds]
            order = random.Random(number).sample(wanted, len(wanted))
            for kind, nodes in order:
                rate = MEASURE[kind](network, out, nodes, quota[kind])
                rows.append({"round": number, "kind": kind, "nodes": nodes, "rate": rate})
                print(json.dumps(rows[-1]), flush=True)
    text, held = table(rows, quota)
    print(text)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
