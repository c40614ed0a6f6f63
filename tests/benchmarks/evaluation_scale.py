"""Peak memory of an evaluation of BIOSCAN-1M's size from cached features: no encoder, no shards.

    python -m tests.benchmarks.evaluation_scale OUT [--queries 225000] [--species 20000] [--dimensions 256]
        [--ranked 225000] [--asked dna:clean] [--resamples 1000]

Random features of image and dna, clean and damaged, are written as an evaluation keeps them, then read, ranked,
measured and written with the evaluation's own functions. Ranking takes the same memory for every chunk of specimens and
every query, but hours for all of them on two cores; --ranked and --asked say how many are ranked in earnest, the others
get copies of these positions, so that what is counted and written has its full size.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engine.specimens.taxonomy import RANKS, Taxonomy
from train.evaluation import error_analysis, top1_accuracy
from train.evaluation.predict import Encoded
from train.evaluation.store import FeatureStore
from train.inference.scoring import SCORINGS, Ranking, Scorer
from train.pages import page, report, tables
from train.pages.result import Evaluation

WIDTH = 20_000  # rows written at once


class Tower(torch.nn.Module):
    """A text tower of random features; captions are numbered in the order they come."""

    logit_scale = torch.tensor(1 / 0.07)

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def tokenizer(self, captions: list[str]) -> torch.Tensor:
        return torch.arange(len(captions))[:, None]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return unit(len(tokens), self.dimensions, len(tokens))

    def fuse(self, image: torch.Tensor, dna: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(image + dna, dim=1)


def unit(rows: int, dimensions: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator), dim=1)


def taxonomy_of(species: int) -> tuple[Taxonomy, pa.Table]:
    """Four species a genus, ten genera a family, twenty families an order; and one row for each species."""
    numbers = range(species)
    names = {
        "order": [f"Order{i // 800}" for i in numbers],
        "family": [f"Family{i // 40}" for i in numbers],
        "genus": [f"Genus{i // 4}" for i in numbers],
        "species": [f"Genus{i // 4} species{i}" for i in numbers],
    }
    return Taxonomy.build(names), pa.table(names)


def write_features(folder: Path, count: int, labels: np.ndarray, dimensions: int) -> None:
    """The cache of an evaluation whose encoding is done."""
    store = FeatureStore(count, folder, "scale")
    for first in range(store.done, count, WIDTH):
        rows = min(WIDTH, count - first)
        values: dict[str, np.ndarray] = {"labels": labels[first : first + rows]}
        values |= {f"has_{name}": np.ones(rows, dtype=bool) for name in ("image", "dna")}
        for place, name in enumerate(("image", "image_noisy", "dna", "dna_noisy")):
            values[name] = unit(rows, dimensions, 4 * first + place).numpy()
        store.write(first, values)
        store.commit(first + rows)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rank(
    model: Tower, taxonomy: Taxonomy, encoded: Encoded, ranked: int, asked: tuple[str, str]
) -> top1_accuracy.Rankings:
    """One query in earnest, copies for the others."""
    scorer = Scorer(model, taxonomy, model.tokenizer)
    some = Encoded(
        encoded.keys[:ranked],
        encoded.labels[:ranked],
        encoded.has_image[:ranked],
        encoded.has_dna[:ranked],
        encoded.features,
    )
    found = top1_accuracy.rank_queries(model, scorer, some, (asked,))
    result: top1_accuracy.Rankings = {}
    for scoring in SCORINGS:
        for key in top1_accuracy.ALL_QUERIES:
            whole = Ranking.empty(len(encoded.keys))
            for first in range(0, len(encoded.keys), ranked):
                rows = np.arange(first, min(first + ranked, len(encoded.keys)))
                one = found[scoring, *asked]
                part = Ranking(*(getattr(one, name)[: len(rows)] for name in ("position", "taxon", "score")))
                whole.fill(rows, part)
            result[scoring, *key] = whole
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=int, default=225_000)
    parser.add_argument("--species", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--ranked", type=int, default=225_000)
    parser.add_argument("--asked", default="dna:clean")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    query, condition = options.asked.split(":")
    asked: tuple[str, str] = (query, condition)
    taxonomy, names = taxonomy_of(options.species)
    species = np.random.default_rng(0).integers(0, options.species, options.queries)
    index = names.take(pa.array(species))
    labels = taxonomy.encode({rank: index[rank] for rank in RANKS})
    write_features(options.out / "features", options.queries, labels, options.dimensions)
    arrays: dict[str, Any] = FeatureStore(options.queries, options.out / "features", "scale").arrays
    flags = {name: arrays.pop(name)[:] for name in ("labels", "has_image", "has_dna")}
    encoded = Encoded([f"specimen{i}" for i in range(options.queries)], features=arrays, **flags)
    print(
        f"features: {options.queries:,} x {options.dimensions} x {len(arrays)}, peak {peak_gib():.2f} GiB", flush=True
    )

    began = time.perf_counter()
    rankings = rank(Tower(options.dimensions), taxonomy, encoded, options.ranked, asked)
    seconds = time.perf_counter() - began
    print(
        f"ranked {options.ranked:,} x {options.species:,} species, both scorings: {seconds:.0f} s, peak "
        f"{peak_gib():.2f} GiB",
        flush=True,
    )

    began = time.perf_counter()
    novel = np.random.default_rng(1).random(options.queries) < 0.5
    parts = top1_accuracy.Subsets(species, novel, encoded.has_both)
    values = top1_accuracy.measure("test", rankings, encoded, parts, options.resamples)
    values |= error_analysis.consistencies("test", rankings, encoded, taxonomy)
    counts = error_analysis.training_counts(index, index)
    values |= error_analysis.tails("test", rankings, encoded, counts, parts.group, options.resamples)
    table = report.predictions(index, encoded, rankings, taxonomy, parts)
    found = Evaluation("test", values, table, {})
    report.write(options.out, values, tables.full_text(values, "test"), page.report(found, "scale", "rollup"), table)
    print(f"measured and written: {time.perf_counter() - began:.0f} s, peak {peak_gib():.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
