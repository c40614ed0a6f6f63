"""How good are the probabilities of a barcode library alone? Fitted on train, measured on test and test_unseen.

    python -m tests.benchmarks.library_alone SHARDS [--lengths 658 313 205 157 100] [--unknown 0.2] [--protax]
        [--outsiders SHARDS]

References: the train split, nothing else is read to fit. Per length: accuracy, that of the nearest reference,
calibration error, share answered at 0.95 and how many of these are right; then (`train.pages.outcomes`) AUROC of
novelty, end and points of the bias-accuracy curve, misclassified / over-classified / under-classified at 0.95. With
--protax its formula (`tests.benchmarks.protax`), fitted on the same references, answers the same questions. Of
outsiders (barcodes of other shards whose order the library does not know), the share named at 0.95, always wrongly.
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
from tests.benchmarks.protax import Protax
from train.evaluation import reliability
from train.evaluation.calibrate_library import answers_of, cases_of, fit_library
from train.evaluation.known_questions import Cases
from train.evaluation.subsets import read_barcodes, without_provisional
from train.inference.calibration import Calibrator
from train.inference.evidence import Answers
from train.inference.library_alone import QUERY, LibraryScorer
from train.pages import outcomes
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
    parser.add_argument("--protax", action="store_true", help="PROTAX's formula beside it")
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
    peer = Protax(library).fit() if options.protax else None
    if peer is not None:
        for rank, weights, wrong in zip(RANKS, peer.weights.tolist(), peer.wrong.sigmoid().tolist(), strict=True):
            print(f"PROTAX at {rank}: unknown, none, best, second {np.round(weights, 2)}, mislabelled {wrong:.4f}")
    for length in options.lengths:
        for unknown in options.unknown:
            measure(scorer, rules, peer, questions(index, options.split, unknown), length)


def measure(
    scorer: LibraryScorer, rules: Calibrator, peer: Protax | None, asked: tuple[pa.Table, list[str]], length: int
) -> None:
    """Print how good the answers to barcodes are that are cut to some length (658 = whole)."""
    rows, barcodes = asked
    library, columns = scorer.library, label_columns(rows)
    labels = library.taxonomy.encode(columns)
    named = np.column_stack([[bool(name) for name in columns[rank]] for rank in RANKS])
    if length < 658:
        keys = rows["key"].to_pylist()
        barcodes = [fragment(b, rng_for(0, 0, k, "fragment"), length) for b, k in zip(barcodes, keys, strict=True)]
    hits = library.search(barcodes)
    parts = [chunk.answers for chunk in scorer.scored(scorer.combiner.of(hits))]
    cases, nearest = cases_of(Answers.concatenate(parts), labels, named), nearest_labels(library, hits)
    evidence = cases.answers.evidence
    told = rules.probabilities(evidence)
    print(f"\n{length} nt, {len(rows)} questions, {cases.withheld.mean():.1%} of unknown species", flush=True)
    near = (nearest == labels) & (labels >= 0)
    report("rules", told, rules.unknown_taxa(evidence, told), cases, near)
    area = roc_auc_score(cases.withheld, rules.novelty(evidence))
    print(f"rules: AUROC of the novelty score {area:.4f}")
    if peer is not None:
        path, told, unknown = peer.answers(hits)
        right = (path == labels) & (labels >= 0)
        report("PROTAX", told, unknown, replace(cases, right=right), near)


def report(who: str, told: np.ndarray, unknown: np.ndarray, cases: Cases, near: np.ndarray) -> None:
    """Print the numbers of one who answered: probabilities [N, R], right ones among the cases."""
    for rank, name in enumerate(RANKS):
        rows = cases.scored[:, rank]
        p, right = told[rows, rank], cases.right[rows, rank]
        sure = p >= THRESHOLD
        there = right[sure].mean() if sure.any() else float("nan")
        error = reliability.calibration_error(p, right)
        print(
            f"| {who} | {name} | right {right.mean():.1%} | nearest {near[rows, rank].mean():.1%} | ECE {error:.4f} | "
            f"mean p {p.mean():.3f} | answered {sure.mean():.1%} | right there {there:.2%} |"
        )
    found = outcomes.measure(told, unknown, cases, THRESHOLD)
    curve = [f"{found[f'curve/{n}/told']:.3f}:{found[f'curve/{n}/found']:.3f}" for n in range(outcomes.POINTS)]
    print(
        f"{who}: AUROC of unknown {found['auroc']:.4f}; with unknown as an answer right {found['right']:.1%}, curve "
        f"ends at {found['bias']:+.3f}; over-classified {found['over']:.2%}, misclassified {found['wrong']:.2%}, "
        f"under-classified {found['under']:.1%}; curve {' '.join(curve)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
