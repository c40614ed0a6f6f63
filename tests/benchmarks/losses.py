"""Time and memory of the losses.

    python -m tests.benchmarks.losses                                   total_loss against plain loops
    python -m tests.benchmarks.losses --release losses_HMLC.py          HiR against the authors' release
    python -m tests.benchmarks.losses --large 32768                     contrastive and HiR of a very large batch

Interleaved: each round times every contestant once, so that a busy machine slows all of them; medians of the rounds,
the spread is the quartiles of the rounds' own ratios. float32, forward and backward. Columns of the first table:
  ours      total_loss and backward
  masks     nothing but deciding in Python, pair by pair, who is whose positive or negative (the least that an
            implementation with B x B loops for masks spends; the authors' release does it so)
  plain     the whole reference of the tests; cubic in B, hence only up to --plain-limit

The release's file (model/losses_HMLC.py of mirajucr/CLIBD-HIR-FUSION) is named by path, it is no part of this project.
It gets what its own training gives it: integer codes [B, R + 1] with 0 = unknown, finest rank last but one.
"""

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.train.losses import reference
from tests.train.losses.batches import NAMES, random_features, random_targets
from train.config import LossConfig
from train.losses import Targets, contrastive_loss, hierarchy_loss, total_loss
from train.losses import masks as loss_masks

SIZES = (16, 32, 64, 128, 250)
RELEASE_SIZES = (250, 500, 1000)
CONFIG = LossConfig(rank_heads_weight=0.1)
AS_RELEASED = LossConfig(representatives="one_per_label")


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


def interleaved(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; one round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def against(ours: list[float], theirs: list[float]) -> str:
    """Median of the rounds' ratios and their quartiles."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{statistics.median(ratios):.0f} [{low:.0f}, {high:.0f}]"


def plain_table(plain_limit: int, rounds: int) -> None:
    """The whole loss against loops."""
    print("| B | ours, ms | masks / ours | plain / ours |\n|---|---|---|---|")
    for num_rows in SIZES:
        seconds = interleaved(contestants(num_rows, plain_limit), rounds)
        shown = against(seconds["ours"], seconds["plain"]) if "plain" in seconds else "-"
        ours = statistics.median(seconds["ours"])
        print(f"| {num_rows} | {1000 * ours:.1f} | {against(seconds['ours'], seconds['masks'])} | {shown} |")


def insects(num_rows: int, dim: int) -> tuple[Any, Targets]:
    """A batch labelled like BIOSCAN: long-tailed, most orders known, 24% of genera, 9% of species."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.arange(1, 5001, dtype=torch.float64)
    species = torch.multinomial(1 / ranks, num_rows, replacement=True, generator=generator)
    labels = torch.stack([species % 16, species % 400, species % 2000, species], dim=1)
    known = torch.rand(num_rows, 1, generator=generator) < torch.tensor([0.997, 0.958, 0.238, 0.092])
    labels = torch.where(known.cummin(dim=1).values, labels, -1)
    there = torch.ones(num_rows, dtype=torch.bool)
    targets = Targets(labels, labels, species, torch.arange(num_rows), there, there, there)
    rows = {
        name: functional.normalize(torch.randn(num_rows, dim, generator=generator), dim=1).requires_grad_()
        for name in NAMES
    }
    return SimpleNamespace(**rows, logit_scale=torch.tensor(1 / 0.07).requires_grad_(), rank_logits=None), targets


def release_table(path: Path, rounds: int) -> None:
    """HiR forward and backward against the release's HMLC."""
    spec = importlib.util.spec_from_file_location("release_hmlc", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    release = module.HMLC(loss_type="hmce")
    print("| B | ours, its form, ms | ours, default, ms | release, ms | release / ours, its form |")
    print("|---|---|---|---|---|")
    for num_rows in RELEASE_SIZES:
        features, targets = insects(num_rows, 512)
        codes = torch.cat([targets.labels + 1, torch.ones(num_rows, 1, dtype=torch.int64)], dim=1)
        views = torch.stack([features.image, features.image_view2], dim=1)

        def ours(config: LossConfig, features: Any = features, targets: Targets = targets) -> None:
            hierarchy_loss(features, targets, config)["loss/hierarchy"].backward()

        def theirs(views: Tensor = views, codes: Tensor = codes) -> None:
            release(views.detach().requires_grad_(), codes).backward()

        steps = {"form": lambda: ours(AS_RELEASED), "default": lambda: ours(LossConfig()), "release": theirs}
        seconds = interleaved(steps, rounds)
        shown = " | ".join(f"{1000 * statistics.median(values):.1f}" for values in seconds.values())
        print(f"| {num_rows} | {shown} | {against(seconds['form'], seconds['release'])} |", flush=True)


def _gradients(loss: Callable[..., dict[str, Tensor]], term: str, features: Any, targets: Targets) -> list[Tensor]:
    leaves = [features.image, features.image_view2, features.dna, features.text]
    found = torch.autograd.grad(loss(features, targets, LossConfig())[term], leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def large_table(num_rows: int, dim: int) -> None:
    """Time and peak memory of a batch whose matrix of pairs would not fit; the gradient against the direct form."""
    losses = {"loss/contrastive": contrastive_loss, "loss/hierarchy": hierarchy_loss}
    features, targets = insects(2048, dim)
    at_once = loss_masks.PAIRS_AT_ONCE["cpu"]
    for term, loss in losses.items():
        loss_masks.PAIRS_AT_ONCE["cpu"] = 1 << 18
        in_parts = _gradients(loss, term, features, targets)
        loss_masks.PAIRS_AT_ONCE["cpu"] = 1 << 40
        direct = _gradients(loss, term, features, targets)
        loss_masks.PAIRS_AT_ONCE["cpu"] = at_once
        both = zip(in_parts, direct, strict=True)
        worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in both)
        print(f"{term}, B = 2048: gradient in parts against the direct form, largest relative difference {worst:.1e}")
    del features, in_parts, direct
    features, targets = insects(num_rows, dim)
    print(
        f"| B = {num_rows}, D = {dim}, {torch.get_num_threads()} threads | minutes | peak memory of the process, GiB |"
    )
    print("|---|---|---|")
    for term, loss in losses.items():
        started = time.perf_counter()
        _gradients(loss, term, features, targets)
        minutes = (time.perf_counter() - started) / 60
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {term} | {minutes:.1f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-limit", type=int, default=64, help="largest batch for the plain loops")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the tables of --release and of the loops")
    parser.add_argument("--release", type=Path, help="the release's losses_HMLC.py")
    parser.add_argument("--large", type=int, metavar="B", help="rows of the very large batch")
    parser.add_argument("--dim", type=int, default=512, help="width of its features")
    arguments = parser.parse_args()
    if arguments.large:
        large_table(arguments.large, arguments.dim)
        return
    torch.set_num_threads(arguments.threads)
    if arguments.release:
        release_table(arguments.release, arguments.rounds)
    else:
        plain_table(arguments.plain_limit, arguments.rounds)


if __name__ == "__main__":
    main()
