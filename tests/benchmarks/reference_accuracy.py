"""Is the reference library at least as good as VSEARCH's top hit? Barcodes alone, paired, on real shards.

    python -m tests.benchmarks.reference_accuracy SHARDS [--queries 2000] [--conditions clean 1x 100nt] [--withheld]
        [--checkpoint RUN]

References: all barcodes of the train split; queries: some of --split. Both are cleaned once and the same for all.
Table: top-1 in %, micro/macro, of each classical tool and of the library (nearest labelled reference at every rank);
behind it library minus the better VSEARCH setting, with the 95% interval of a paired bootstrap over barcode groups
(queries of one barcode are drawn together). --withheld: the species of `withheld_species` leave the references, their
specimens are the queries, genus, family and order are scored. --checkpoint: also the answers of that model with the
library, as the service gives them ("combined"; its calibration is that of `train.evaluate --calibration`); then the
difference is theirs. With --withheld it must be a model that was trained without those species.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from engine.specimens.taxonomy import RANKS
from serve.answers.answer import Answer, Query
from serve.answers.predictor import Predictor
from tests.benchmarks.barcode_queries import SPECIES, Task, damaged, make_task, read, withheld_species
from tests.benchmarks.classical_tools import run_tools
from train.metrics import macro, micro, paired_difference
from train.reference import Library, nearest_labels

VSEARCH = ("vsearch_1_32", "vsearch_8_64")
OURS = ("library", "combined")
CONDITIONS = ("clean", "1x", "2x", "4x", "100nt", "150nt", "200nt")


def library_of(task: Task) -> Library:
    """The task's references as a library."""
    return Library.build(task.references.index, task.references.barcodes)


def library_labels(library: Library, task: Task, queries: list[str], threads: int) -> np.ndarray:
    """The library's top-1 in the task's labels, int64 [N, R]; only binomials name species."""
    labels = np.where(library.labels < 0, -1, task.reference_labels)
    return nearest_labels(library, library.search(queries, threads=threads), labels)


def combined_labels(predictor: Predictor, task: Task, queries: list[str]) -> np.ndarray:
    """The names that model and library give together, in the task's labels, int64 [N, R]; -1 = none."""
    place = [{name: number for number, name in enumerate(names)} for names in task.taxonomy.names]
    found = np.full((len(queries), len(RANKS)), -1)
    asked = [Query(str(number), (), barcode) for number, barcode in enumerate(queries)]
    for row, answer in enumerate(predictor.identify(asked, threshold=0.0, top=1)):
        if isinstance(answer, Answer):
            found[row] = [place[rank].get(one.name or "", -1) for rank, one in enumerate(answer.ranks)]
    return found


def scored(task: Task, answer: np.ndarray, rank: int, rows: np.ndarray) -> tuple[float, float]:
    """Micro and macro top-1 in %."""
    truth = task.query_labels[:, rank]
    right, rows = answer[:, rank] == truth, rows & (truth >= 0)
    return 100 * micro(right, rows), 100 * macro(right, np.where(rows, truth, -1))


def compared(task: Task, answers: dict[str, np.ndarray], rank: int, rows: np.ndarray, resamples: int) -> str:
    """The last of the answers minus the better peer, micro and macro, in points with intervals."""
    own = list(answers)[-1]
    truth = task.query_labels[:, rank]
    rows = rows & (truth >= 0)
    texts = []
    for place, classes in enumerate((None, truth[rows])):
        peers = [name for name in answers if name not in OURS]
        best = max(peers, key=lambda name: scored(task, answers[name], rank, rows)[place])
        right = [answers[name][rows, rank] == truth[rows] for name in (own, best)]
        gap = paired_difference(right[0], right[1], task.groups[rows], classes, resamples)
        texts.append(f"{100 * gap.value:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}] ({best})")
    return " | ".join(texts)


def table(task: Task, found: dict[str, dict[str, np.ndarray]], ranks: list[int], resamples: int) -> str:
    """Every condition, rank and scope: a line of micro/macro of each, and the difference."""
    names = list(next(iter(found.values())))
    lines = [f"| condition | rank | scope | n | {' | '.join(names)} | micro | macro |", "|---" * (6 + len(names)) + "|"]
    for condition, answers in found.items():
        for rank in ranks:
            for scope, rows in (("all", np.ones(len(task.novel), dtype=bool)), ("novel", task.novel)):
                count = int((rows & (task.query_labels[:, rank] >= 0)).sum())
                cells = ["{:.2f}/{:.2f}".format(*scored(task, answer, rank, rows)) for answer in answers.values()]
                gap = compared(task, answers, rank, rows, resamples)
                lines.append(f"| {condition} | {RANKS[rank]} | {scope} | {count} | {' | '.join(cells)} | {gap} |")
    return "\n".join(lines)


def withheld_task(options: argparse.Namespace) -> Task:
    """References without the withheld species; queries are their specimens of the split."""
    references, queries = read(options.shards, "train"), read(options.shards, options.split)
    gone = withheld_species(references)
    out = np.isin(np.array(references.species, dtype=str), list(gone))
    asked = np.flatnonzero(np.isin(np.array(queries.species, dtype=str), list(gone)))
    print(f"{len(gone)} species withheld, {out.sum()} references and {len(asked)} queries of them")
    return make_task(queries.take(asked[: options.queries or None]), references.take(~out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--queries", type=int, default=2000, help="how many; 0 = all")
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS, help="clean, SEVERITYx, LENGTHnt")
    parser.add_argument("--tools", nargs="*", default=VSEARCH, help="of tests.benchmarks.classical_tools.COMMANDS")
    parser.add_argument("--withheld", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.withheld:
        task = withheld_task(options)
    else:
        task = make_task(read(options.shards, options.split, options.queries), read(options.shards, "train"))
    library, predictor = library_of(task), None
    if options.checkpoint:
        bare = Predictor.load(options.checkpoint)
        predictor = Predictor(bare.model, bare.data, bare.scorer, calibration=bare.calibration, library=library)
        predictor.threads = options.threads
    print(
        f"{len(task.queries.barcodes)} queries, {len(np.unique(task.groups))} groups, {task.novel.mean():.1%} novel; "
        f"{len(task.references.barcodes)} references, {library.num_haplotypes} different"
    )
    found: dict[str, dict[str, np.ndarray]] = {}
    for condition in options.conditions:
        asked = damaged(task.queries, condition)
        runs = run_tools(
            asked, task.references.barcodes, task.reference_labels, options.tools, options.threads, timed=False
        )
        found[condition] = {name: run.labels for name, run in runs.items()}
        start, cpu = time.perf_counter(), time.process_time()
        found[condition]["library"] = library_labels(library, task, asked, options.threads)
        each = [1000 * value / len(asked) for value in (time.perf_counter() - start, time.process_time() - cpu)]
        print(f"{condition}: library {each[0]:.2f} ms a query ({each[1]:.2f} of CPU)", flush=True)
        if predictor is not None:
            found[condition]["combined"] = combined_labels(predictor, task, asked)
    for run in runs.values():
        print(run.command)
    ranks = list(range(SPECIES)) if options.withheld else [SPECIES]
    print(table(task, found, ranks, options.resamples))


if __name__ == "__main__":
    main()
