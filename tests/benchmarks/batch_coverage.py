"""How many anchors meet a relative in their global batch, for stored layouts and window sizes.

    python -m tests.benchmarks.batch_coverage bioscan:1000000 ../shared/data/coi/barcodes.parquet --plot coverage.png

Coverage at a rank = share of the specimens labelled there that have another specimen of the same label in the batch.
The order is measured over whole epochs, between plain shuffling and samplers that see all N specimens at once: ours
with one window (`window N`) and the paper's composition (`authors' form`, tests/benchmarks/authors_sampler.py).
The last column is the share of the anchors that met a relative in at least one of the epochs measured. No model, no
images: labels only. `bioscan:N` generates labels with BIOSCAN-5M's counts per rank (tests/benchmarks/label_sets.py).
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from engine.batches.sampling import EpochPlan
from engine.ingest.plan import Layout
from engine.specimens.taxonomy import RANKS
from tests.benchmarks.authors_sampler import linear
from tests.benchmarks.label_sets import labels_of, stored_order

SHUFFLED, AUTHORS, WHOLE = "plain shuffling", "authors' form", "window N"


@dataclass(frozen=True)
class Row:
    """One line of the table; shares in %, means over the epochs."""

    labels: str
    batch: int
    layout: str
    order: str
    coverage: tuple[float, ...]  # per rank
    spread: float  # greatest difference between epochs, in points
    families: float  # distinct ones in a batch
    met: tuple[float, ...]  # per rank, in any of the epochs


def related(labels: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """For the rows of `batches` [steps, B]: which have another row of their label in their batch; bool [N, R]."""
    found = np.zeros(labels.shape, dtype=bool)
    step = np.repeat(np.arange(len(batches)), batches.shape[1])
    rows = batches.reshape(-1)
    for rank in range(labels.shape[1]):
        known = labels[rows, rank] >= 0
        key = step[known] * (int(labels[:, rank].max()) + 1) + labels[rows[known], rank]
        order = np.argsort(key)
        equal = np.diff(key[order]) == 0
        found[rows[known][order], rank] = np.append(equal, False) | np.insert(equal, 0, False)
    return found


def families(labels: np.ndarray, batches: np.ndarray) -> float:
    """Mean number of distinct families of a batch."""
    column = labels[batches, RANKS.index("family")]
    column.sort(axis=1)
    return float(((np.diff(column, axis=1, prepend=-1) != 0) & (column >= 0)).sum(axis=1).mean())


def measure(
    labels: np.ndarray, name: tuple[str, int, str, str], order: Callable[[int], np.ndarray], epochs: int
) -> Row:
    """Measure `order(epoch)` [steps, B] over some epochs."""
    shares, counts = [], []
    met, visited = np.zeros(labels.shape, dtype=bool), np.zeros(len(labels), dtype=bool)
    for epoch in range(epochs):
        batches = order(epoch)
        found = related(labels, batches)
        seen = np.zeros(len(labels), dtype=bool)
        seen[batches] = True
        anchors = (labels >= 0) & seen[:, None]
        shares.append(100 * found.sum(axis=0) / anchors.sum(axis=0))
        counts.append(families(labels, batches))
        met |= found
        visited |= seen
    ever = 100 * met.sum(axis=0) / ((labels >= 0) & visited[:, None]).sum(axis=0)
    spread = float(np.ptp(shares, axis=0).max())
    means = tuple(float(share) for share in np.mean(shares, axis=0))
    return Row(*name, means, spread, float(np.mean(counts)), tuple(float(share) for share in ever))


def cut(rows: np.ndarray, batch: int) -> np.ndarray:
    """Consecutive batches [steps, B]; the rest is left out."""
    return rows[: len(rows) // batch * batch].reshape(-1, batch)


def _steps(plan: EpochPlan, epoch: int) -> np.ndarray:
    return plan.order(epoch).reshape(plan.steps_per_epoch, -1)


def rows_of(name: str, batch: int, options: argparse.Namespace) -> Iterator[Row]:
    """All lines of one label set and batch size."""
    known = labels_of(name)
    title = Path(name).parent.name if "/" in name else name

    def shuffled(epoch: int) -> np.ndarray:
        return cut(np.random.default_rng(epoch).permutation(len(known)), batch)

    yield measure(known, (title, batch, "any", SHUFFLED), shuffled, options.epochs)
    layouts: tuple[Layout, ...] = ("random", "clustered")
    for layout in layouts:
        labels = known[stored_order(known, layout)]
        for window in (*options.windows, len(labels)):
            if window == len(labels) and layout == "clustered":
                continue  # one window: the layout no longer matters
            plan = EpochPlan(labels=labels, seed=0, global_batch_size=batch, window=window)
            whole = window == len(labels)
            name_of = (title, batch, "any" if whole else layout, WHOLE if whole else f"window {window}")
            yield measure(labels, name_of, partial(_steps, plan), options.epochs)
    yield measure(known, (title, batch, "any", AUTHORS), lambda epoch: cut(linear(known, epoch), batch), options.epochs)


def table(rows: list[Row]) -> str:
    """Markdown; behind family, genus and species the share of what the unbounded window reaches."""
    whole = next(row for row in rows if row.order == WHOLE)
    epochs = "met in any epoch measured, genus / species"
    lines = [
        f"**{rows[0].labels}, batch {rows[0].batch}**\n",
        f"| layout | order | {' | '.join(RANKS)} | families a batch | {epochs} |",
        "|---|---|" + "---:|" * (len(RANKS) + 2),
    ]
    for row in rows:
        cells = [
            f"{share:.1f}" + (f" ({100 * share / reached:.0f}%)" if rank else "")
            for rank, (share, reached) in enumerate(zip(row.coverage, whole.coverage, strict=True))
        ]
        met = " / ".join(f"{share:.1f}" for share in row.met[-2:])
        lines.append(f"| {row.layout} | {row.order} | {' | '.join(cells)} | {row.families:.1f} | {met} |")
    lines.append(f"\nGreatest difference between epochs: {max(row.spread for row in rows):.2f} points.\n")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Coverage against the window, one panel per label set and rank; shuffling and the unbounded window as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = sorted({(row.labels, row.batch) for row in rows})
    figure, axes = plt.subplots(len(sets), 3, figsize=(11, 2.9 * len(sets)), squeeze=False, sharex=True)
    for line, key in zip(axes, sets, strict=True):
        own = [row for row in rows if (row.labels, row.batch) == key]
        for panel, rank in zip(line, range(1, 4), strict=True):
            for layout in ("random", "clustered"):
                points = [(int(r.order.split()[1]), r.coverage[rank]) for r in own if r.layout == layout]
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{layout} layout")
            for row in own:
                if row.layout == "any":
                    style = {SHUFFLED: ":", WHOLE: "-", AUTHORS: "--"}[row.order]
                    panel.axhline(row.coverage[rank], color="gray", linestyle=style, linewidth=1, label=row.order)
            ticks = [int(window) for window, _ in points]
            panel.set(ylim=(0, 102), title=f"{key[0]}, batch {key[1]}: {RANKS[rank]}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(ticks, [f"{tick // 1024}k" for tick in ticks])
            panel.minorticks_off()
            panel.title.set_fontsize(9)
    axes[0, 0].legend(fontsize=7)
    axes[0, 0].set_ylabel("anchors with a positive, %")
    for panel in axes[-1]:
        panel.set_xlabel("window, specimens")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="+", help="bioscan:N or a parquet table with the columns order ... species")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--windows", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="write the coverage against the window to this PNG")
    parser.add_argument("--json", type=Path, help="write all lines to this file")
    options = parser.parse_args()
    found = []
    for name in options.labels:
        for batch in options.batches:
            rows = list(rows_of(name, batch, options))
            found += rows
            print(table(rows), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    if options.plot:
        plot(found, options.plot)
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
