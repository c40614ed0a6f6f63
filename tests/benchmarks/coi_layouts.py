"""Does the stored layout, the window, or bringing partners together change what a model learns in equal steps?

    python -m tests.benchmarks.coi_layouts ../shared/data/coi/barcodes.parquet --out /tmp/layouts --seeds 3

Sample: at most --sample training rows of the taxa (genus and species) that occur in val, and all of val. It is ingested
with both layouts. Each case trains the DNA + text model of the recipe `bold` from random weights for the same number of
steps in this process, without Ray; val is scored by roll-up. The cases of one seed share their initial weights and
follow one another, so differences are paired by seed. Figures: top-1 in %, mean over the seeds and their range.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from engine.batches.pipeline import evaluation_batches, label_columns, load_index, select_split
from engine.formats.registry import open_dataset
from engine.ingest.job import IngestOptions, ingest
from engine.ingest.plan import Layout
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import MANIFEST_NAME
from train.config import Config, override
from train.evaluation.predict import accuracy_of
from train.inference.scoring import Scorer
from train.learning.loop import Session
from train.recipes import make

Case = tuple[str, int, bool]  # layout, window, partners


def write_sample(table: Path, out: Path, count: int) -> Path:
    """Write the rows to train and to validate on as a parquet table."""
    rows = pq.read_table(table)
    split = np.array(rows["split"].to_pylist())
    names = zip(rows["genus"].to_pylist(), rows["species"].to_pylist(), strict=True)
    taxa = np.array([f"{genus}\t{species}" for genus, species in names])
    train = np.flatnonzero((split == "train") & np.isin(taxa, taxa[split == "val"]))
    train = np.random.default_rng(0).permutation(train)[:count]
    chosen = np.concatenate((np.sort(train), np.flatnonzero(split == "val")))
    path = out / "sample.parquet"
    pq.write_table(rows.take(pa.array(chosen)), path)
    return path


def shards_of(sample: Path, layout: Layout) -> Path:
    """The sample's shards in one layout, written where they are not yet."""
    folder = sample.with_name(layout)
    if not (folder / MANIFEST_NAME).is_file():
        ingest(open_dataset("table", [sample]), folder, IngestOptions(layout=layout, parallel=False))
    return folder


def accuracy(config: Config) -> dict[str, float]:
    """Train one case in this process; top-1 in % per rank, and seconds."""
    index = load_index(config.data.shards)
    taxonomy = Taxonomy.build(label_columns(select_split(index, "train")))
    session = Session(config, index, taxonomy, torch.device("cpu"))
    start = time.perf_counter()
    for batch in session.batches(None):
        session.train_step(batch)
    seconds = time.perf_counter() - start
    batches = evaluation_batches(select_split(index, "val"), taxonomy, config.data, config.eval.batch_size)
    found = accuracy_of(Scorer(session.model, taxonomy, session.tokenizer, session.device), batches)
    tops = {rank: 100 * found[f"val/dna/clean/{rank}/top1"] for rank in RANKS}
    return tops | {"seconds": seconds, "steps": float(session.step)}


def runs(options: argparse.Namespace, shards: dict[str, Path]) -> Iterator[tuple[int, Case, dict[str, float]]]:
    """Every case of every seed; what was measured before is not measured again."""
    store = options.out / f"runs-{options.epochs}-{options.batch}.jsonl"
    done = {}
    if store.exists():
        for line in store.read_text().splitlines():
            seed, case, found = json.loads(line)
            done[seed, tuple(case)] = found
    cases = list(product(shards, options.windows, (True, False)))
    for seed in range(options.seeds):
        if any((seed, case) not in done for case in cases):
            if not options.new_runs:
                return
            options.new_runs -= 1
        for case in cases:
            if (seed, case) not in done:
                layout, window, partners = case
                settings = [
                    f"data.shards={shards[layout]}",
                    f"data.window={window}",
                    f"data.partners={partners}".lower(),
                    f"run.seed={seed}",
                    f"run.epochs={options.epochs}",
                    f"run.global_batch_size={options.batch}",
                ]
                done[seed, case] = accuracy(override(make("bold"), settings))
                with store.open("a") as file:
                    file.write(json.dumps([seed, case, done[seed, case]]) + "\n")
            yield seed, case, done[seed, case]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="parquet with barcode, order ... species, split (train and val)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sample, its shards and the runs")
    parser.add_argument("--sample", type=int, default=100_000)
    parser.add_argument("--windows", type=int, nargs="+", default=[4096])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--new-runs", type=int, default=10**6, help="most seeds to measure now; a later call goes on")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    sample = options.out / "sample.parquet"
    if not sample.exists():
        write_sample(options.table, options.out, options.sample)
    layouts: tuple[Layout, ...] = ("random", "clustered")
    shards: dict[str, Path] = {layout: shards_of(sample, layout) for layout in layouts}
    found: dict[Case, list[dict[str, float]]] = {}
    for seed, case, figures in runs(options, shards):
        found.setdefault(case, []).append(figures)
        print(seed, case, {name: round(value, 2) for name, value in figures.items()}, flush=True)
    print(f"\n| layout | window | partners | steps | {' | '.join(RANKS[1:])} |\n|---|---:|---|---:|---:|---:|---:|")
    for (layout, window, partners), figures_of in found.items():
        cells = []
        for rank in RANKS[1:]:
            values = [figures[rank] for figures in figures_of]
            cells.append(f"{statistics.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]")
        steps = int(figures_of[0]["steps"])
        print(f"| {layout} | {window} | {'on' if partners else 'off'} | {steps} | {' | '.join(cells)} |")
    print(f"\nat most {options.seeds} seeds, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
