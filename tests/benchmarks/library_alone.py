"""How good are the probabilities of a barcode library alone? Fitted on train, measured on test and test_unseen.

    python -m tests.benchmarks.library_alone SHARDS [--lengths 658 313 205 157 100] [--unknown 0.2] [--outsiders SHARDS]

References: the train split, nothing else is read to fit. Per length: accuracy, that of the nearest reference,
calibration error, share answered at 0.95 and how many of these are right, AUROC of novelty, end of the bias-accuracy
curve (sum of the probabilities of the best outcome of each specimen, "unknown species" included, minus the share of
right ones; PROTAX's figure), misclassified / over-classified / under-classified at 0.95. Of outsiders (barcodes of
other shards whose order the library does not know), the share named at 0.95, every one of them wrongly.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.metrics import roc_auc_score

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.signals.barcodes import orient_batch
from engine.signals.degrade import fragment
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS
from train.evaluation import reliability
from train.evaluation.calibrate_library import answers_of, cases_of, fit_library
from train.evaluation.known_questions import SPECIES
from train.evaluation.subsets import read_barcodes, without_provisional
from train.inference.calibration import Calibrator, back_off
from train.inference.evidence import Answers
from train.inference.library_alone import QUERY, LibraryScorer
from train.reference import Library, nearest_labels

THRESHOLD = 0.95
OUTSIDERS = 500  # asked


def questions(index: pa.Table, split: str, unknown: float) -> tuple[pa.Table, list[str]]:
    """Return rows of a split and as many of its `_unseen` that they are the share `unknown`, and their barcodes."""
    known, unseen = (without_provisional(select_split(index, name))[0] for name in (split, f"{split}_unseen"))
    count = min(len(unseen), round(len(known) * unknown / (1 - unknown)))
    chosen = np.sort(np.random.default_rng(0).permutation(len(unseen))[:count])
    rows = pa.concat_tables([known, unseen.take(pa.array(chosen))])
    return rows, orient_batch(read_barcodes(rows))


def ask_outsiders(index: pa.Table, scorer: LibraryScorer, rules: Calibrator) -> None:
    """Print how many specimens of orders that the library does not know are named at THRESHOLD, rank by rank."""
    known = set(scorer.library.taxonomy.names[0])
    orders = index["order"].to_pylist()
    rows = np.flatnonzero([bool(order) and order not in known for order in orders])
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:OUTSIDERS])
    chosen = index.take(pa.array(rows))
    evidence = answers_of(scorer, orient_batch(read_barcodes(chosen))).evidence
    for name, one in (("capped", rules), ("not capped", replace(rules, caps=()))):
        sure = one.probabilities(evidence) >= THRESHOLD
        shares = ", ".join(f"{rank} {share:.2%}" for rank, share in zip(RANKS, sure.mean(axis=0), strict=True))
        print(f"{len(rows)} outsiders of {len(set(chosen['order'].to_pylist()))} orders, {name}: named at {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--unknown", nargs="+", type=float, default=[0.2], help="shares of the split's _unseen")
    parser.add_argument("--lengths", nargs="+", type=int, default=[658, 313, 205, 157, 100])
    parser.add_argument("--outsiders", type=Path, help="shards whose specimens of other orders are asked about")
    options = parser.parse_args()
    index = load_index([options.shards])
    train = select_split(index, "train")
    library = Library.build(train, read_barcodes(train))
    began = time.process_time()
    rules = fit_library(library).queries[QUERY]
    print(f"{len(train):,} references, rules fitted in {time.process_time() - began:.0f} s of CPU", flush=True)
    scorer = LibraryScorer(library)
    if options.outsiders:
        ask_outsiders(load_index([options.outsiders]), scorer, rules)
    for length in options.lengths:
        for unknown in options.unknown:
            measure(scorer, rules, *questions(index, options.split, unknown), length)


def measure(scorer: LibraryScorer, rules: Calibrator, rows: pa.Table, barcodes: list[str], length: int) -> None:
    """Print how good the answers to barcodes are that are cut to some length (658 = whole)."""
    library, columns = scorer.library, label_columns(rows)
    labels = library.taxonomy.encode(columns)
    named = np.column_stack([[bool(name) for name in columns[rank]] for rank in RANKS])
    if length < 658:
        keys = rows["key"].to_pylist()
        barcodes = [fragment(b, rng_for(0, 0, k, "fragment"), length) for b, k in zip(barcodes, keys, strict=True)]
    hits = library.search(barcodes)
    parts = [chunk.answers for chunk in scorer.scored(scorer.combiner.of(hits))]
    cases, nearest = cases_of(Answers.concatenate(parts), labels, named), nearest_labels(library, hits)
    told = rules.probabilities(cases.answers.evidence)
    unknown = rules.unknown_taxa(cases.answers.evidence, told)
    novel = rules.novelty(cases.answers.evidence)
    print(flush=True)
    print(f"{length} nt, {len(rows)} questions, {cases.withheld.mean():.1%} of unknown species")
    for rank, name in enumerate(RANKS):
        rows_named = named[:, rank]
        p, right = told[rows_named, rank], cases.right[rows_named, rank]
        sure = p >= THRESHOLD
        near = ((nearest[:, rank] == labels[:, rank]) & (labels[:, rank] >= 0))[rows_named]
        there = right[sure].mean() if sure.any() else float("nan")
        error = reliability.calibration_error(p, right)
        print(
            f"| {name} | right {right.mean():.1%} | nearest {near.mean():.1%} | ECE {error:.4f} | "
            f"mean p {p.mean():.3f} | answered {sure.mean():.1%} | right there {there:.2%} |"
        )
    outcome = np.column_stack([told[:, SPECIES], unknown.sum(axis=1)])
    best = outcome.argmax(axis=1)
    good = np.where(best == 0, cases.right[:, SPECIES], cases.withheld)
    area = roc_auc_score(cases.withheld, novel)
    print(
        f"AUROC of novelty {area:.4f}; with unknown as an answer right {good.mean():.1%}, curve ends at "
        f"{outcome.max(axis=1).mean() - good.mean():+.3f}; {_ends(told, cases.right, labels)}"
    )


def _ends(told: np.ndarray, right: np.ndarray, labels: np.ndarray) -> str:
    """Return how the answers at THRESHOLD end: wrong where a known taxon was true, wrong where none was, too coarse."""
    depth, deepest = back_off(told, THRESHOLD), np.where(labels >= 0, np.arange(len(RANKS)), -1).max(axis=1)
    wrong = (depth >= 0) & ~right[np.arange(len(depth)), np.maximum(depth, 0)]
    over, short = wrong & (depth > deepest), ~wrong & (depth < deepest)
    return (
        f"over-classified {over.mean():.2%}, misclassified {(wrong & ~over).mean():.2%}, under-classified "
        f"{short.mean():.1%}"
    )


if __name__ == "__main__":
    main()
