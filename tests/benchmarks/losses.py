"""Time of `total_loss` forward + backward against plain loops. `python -m tests.benchmarks.losses [--plain-limit 64]`

Interleaved: each round times every contestant once, so that a busy machine slows all of them; the best of the rounds
counts. One thread, float32, D = 256, default LossConfig with heads. Columns:
  ours      total_loss and backward
  masks     nothing but deciding in Python, pair by pair, who is whose positive or negative (the least that an
            implementation with B x B loops for masks spends; the authors' release does it so)
  plain     the whole reference of the tests; cubic in B, hence only up to --plain-limit
"""

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tests.train import losses_reference as reference
from tests.train.loss_batches import NAMES, random_features, random_targets
from train.config import LossConfig
from train.losses import total_loss

SIZES = (16, 32, 64, 128, 250)
CONFIG = LossConfig(rank_heads_weight=0.1)


def masks_by_loops(rows: reference.Rows) -> int:
    """Decide every pair of the text, the image-dna and the four HiR terms; returns how many are positive."""
    pairs = [(i, j) for i in range(len(rows.bin)) for j in range(len(rows.bin))]
    positive = sum(reference.text_relation(rows, "masked", i, j) == reference.POSITIVE for i, j in pairs)
    positive += sum(reference.image_dna_relation(rows, "masked", i, j) == reference.POSITIVE for i, j in pairs)
    for rank in range(4):
        positive += sum(reference.same(rows.labels[i][rank], rows.labels[j][rank]) for i, j in pairs)
    return positive


def contestants(num_rows: int, plain_limit: int) -> dict[str, Callable[[], Any]]:
    """Functions that do one step each, on the same batch."""
    targets = random_targets(0, num_rows=num_rows)
    features = random_features(0, targets, dim=256, dtype=torch.float32)
    rows = reference.Rows.of(targets)
    double = SimpleNamespace(**vars(features))
    for name in (*NAMES, "logit_scale"):
        setattr(double, name, getattr(features, name).detach().double().requires_grad_())
    steps: dict[str, Callable[[], Any]] = {
        "ours": lambda: total_loss(features, targets, CONFIG)["loss/total"].backward(),
        "masks": lambda: masks_by_loops(rows),
    }
    if num_rows <= plain_limit:
        steps["plain"] = lambda: reference.total(double, rows, CONFIG)["loss/total"].backward()
    return steps


def best_times(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Best seconds of each, over interleaved rounds."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-limit", type=int, default=64, help="largest batch for the plain loops")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| B | ours, ms | masks, ms | masks / ours | plain, ms | plain / ours |")
    print("|---|---|---|---|---|---|")
    for num_rows in SIZES:
        best = best_times(contestants(num_rows, arguments.plain_limit), arguments.rounds)
        ours, masks, plain = best["ours"], best["masks"], best.get("plain")
        shown = f"{1000 * plain:.0f} | {plain / ours:.0f}" if plain else "- | -"
        print(f"| {num_rows} | {1000 * ours:.1f} | {1000 * masks:.1f} | {masks / ours:.1f} | {shown} |")


if __name__ == "__main__":
    main()
