"""What each objective of pretraining learns in the same CPU minutes of one thread.

    python -m tests.benchmarks.pretrain_budget RECIPE SHARDS OUT --minutes 5

Drives the training loop's session in this process. The first steps are timed, then as many are planned as fit, so that
the rate falls to its end. Writes OUT/model, a checkpoint for `python -m train.benchmark`, and prints the loss curve.
"""

import argparse
import time
from pathlib import Path

import torch

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.specimens.taxonomy import Taxonomy
from train.config import override
from train.learning.loop import Phase, Session
from train.models import checkpoint
from train.recipes import make

TIMED = 6  # steps, of which the first is not counted


def session_of(options: argparse.Namespace) -> Session:
    """A run of the recipe on the shards, with nothing trained yet."""
    config = override(make(options.recipe), [f"data.shards={options.shards}", "run.epochs=100", *options.overrides])
    index = load_index(config.data.shards)
    taxonomy = Taxonomy.build(label_columns(select_split(index, "train")))
    return Session(config, index, taxonomy, torch.device("cpu"))


def seconds_per_step(session: Session) -> float:
    """CPU seconds of a step with its batch."""
    marks = []
    for batch in session.batches(None):
        session.train_step(batch)
        marks.append(time.process_time())
        if len(marks) == TIMED:
            break
    return (marks[-1] - marks[0]) / (TIMED - 1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("barcodebert", "barcodemae"))
    parser.add_argument("shards")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    steps = max(TIMED, int(60 * options.minutes / seconds_per_step(session_of(options))))
    session = session_of(options)
    session.phases = (Phase(0, steps, session.config.loss, "dna"),)
    session._enter(session.phases[0])
    print(f"{options.recipe}: {steps} steps of {session.plan.global_batch_size} barcodes", flush=True)
    print("| CPU minutes | barcodes | loss | named |\n|---|---|---|---|", flush=True)
    started, every, terms = time.process_time(), max(1, steps // 8), []
    for batch in session.batches(None):
        terms.append({name: float(value) for name, value in session.train_step(batch).items()})
        if session.step % every == 0:
            loss, named = (sum(term[key] for term in terms) / len(terms) for key in ("loss/total", "loss/named"))
            cells = f"{(time.process_time() - started) / 60:.2f} | {session.step * session.plan.global_batch_size}"
            print(f"| {cells} | {loss:.3f} | {100 * named:.1f}% |", flush=True)
            terms = []
    folder = options.out / "model"
    folder.mkdir(parents=True)
    checkpoint.save(folder, session.model, session.config, session.taxonomy, step=session.step, state=None)


if __name__ == "__main__":
    main()
