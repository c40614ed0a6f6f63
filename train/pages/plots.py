"""Pictures of the evaluation page. Each function returns a matplotlib figure, free of global state."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from engine import html
from engine.specimens.taxonomy import RANKS
from train import metrics
from train.inference.calibration import POOLED, WITH_LIBRARY

COLOURS = {"image": "#E69F00", "dna": "#0072B2", "average": "#999999", "fused": "#009E73"}  # Okabe and Ito, 2008
INSIDE = {"image": "black", "dna": "white", "average": "black", "fused": "white"}  # of the numbers, for contrast
NOISY = {"image": "noisy", "dna": "noisy", "average": "noisy_both", "fused": "noisy_both"}
TITLES = {
    "image": "photo",
    "dna": "barcode",
    "average": "average",
    "fused": "gated fusion",
    POOLED: "pool of photo and barcode",
    f"dna{WITH_LIBRARY}": "pool of barcode and library",
    f"{POOLED}{WITH_LIBRARY}": "pool of photo, barcode and library",
}
GRID = "#dddddd"


def measured(values: Mapping[str, float], split: str) -> list[str]:
    """Return the queries that some specimen could be asked with, in the order of COLOURS."""
    return [query for query in COLOURS if values.get(f"{metrics.prefix(split, query, 'clean')}/rows")]


def _percent(values: Mapping[str, float], key: str) -> float:
    return 100 * float(np.nan_to_num(values.get(key, 0.0)))


def accuracy_bars(values: Mapping[str, float], split: str) -> Figure:
    """Bars of top-1 per rank (roll-up, micro): pale to the clean accuracy, solid to the noisy one."""
    shown = measured(values, split)
    figure = html.new_figure(11, 5.2)
    axes = figure.subplots()
    width = 0.84 / max(1, len(shown))
    for place, query in enumerate(shown):
        at = np.arange(len(RANKS)) + (place - (len(shown) - 1) / 2) * width
        ends = [
            [_percent(values, f"{metrics.prefix(split, query, condition)}/{rank}/top1") for rank in RANKS]
            for condition in ("clean", NOISY[query])
        ]
        axes.bar(at, ends[0], width * 0.9, color=COLOURS[query], alpha=0.35)
        axes.bar(at, ends[1], width * 0.9, color=COLOURS[query])
        for x, clean, noisy in zip(at, *ends, strict=True):
            axes.text(x, max(clean, noisy) + 1, f"{clean:.0f}", ha="center", va="bottom", fontsize=9, color="#222222")
            if noisy > 8:
                axes.text(x, noisy - 1.5, f"{noisy:.0f}", ha="center", va="top", fontsize=9, color=INSIDE[query])
    handles = [Patch(color=COLOURS[query], label=TITLES[query]) for query in shown]
    handles += [
        Patch(color="#777777", alpha=0.35, label="clean input (top)"),
        Patch(color="#777777", label="damaged (inside)"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncol=len(handles), frameon=False)
    axes.set_xticks(range(len(RANKS)), RANKS, fontsize=11)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(f"Specimens of {split} named correctly, by rank", loc="left", fontsize=13, pad=12)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def heat_map(names: Sequence[str], counts: np.ndarray) -> Figure:
    """Shares of each true name (rows) that got each answer (columns), from counts [K, K]; small shares are visible."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.26 * len(names)
    figure = html.new_figure(side + 1.2, side)
    axes = figure.subplots()
    mesh = axes.pcolormesh(shares, cmap="YlGnBu", norm=PowerNorm(0.4, 0, 100), edgecolors="white", linewidth=0.4)
    for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
        share = shares[row, column]
        ink = "white" if share > 35 else "#222222"
        axes.text(column + 0.5, row + 0.5, f"{share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    ticks = np.arange(len(names)) + 0.5
    totals = counts.sum(axis=1)
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    labels = [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)]
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_xlabel("answered")
    axes.set_ylabel("true (specimens)")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=axes, label="% of the true family", ticks=[0, 1, 5, 20, 50, 100], shrink=0.7)
    return figure


def tail_lines(values: Mapping[str, float], split: str, bins: Sequence[str]) -> Figure:
    """Species accuracy against the number of training specimens: clean as lines with intervals, damaged dashed."""
    figure = html.new_figure(9, 4.2)
    axes = figure.subplots()
    for query in measured(values, split):
        for condition, style in (("clean", "-"), (NOISY[query], "--")):
            start = f"{metrics.prefix(split, query, condition)}/tail"
            there = [place for place, name in enumerate(bins) if f"{start}/{name}/top1" in values]
            if not there:
                continue
            middle, low, high = (
                [_percent(values, f"{start}/{bins[place]}/{part}") for place in there]
                for part in ("top1", "low", "high")
            )
            label = f"{TITLES[query]}, {'clean' if condition == 'clean' else 'damaged'}"
            axes.plot(there, middle, style, color=COLOURS[query], marker="o", markersize=4, label=label)
            if condition == "clean":
                axes.fill_between(there, low, high, color=COLOURS[query], alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(bins)), bins)
    axes.set_ylim(0, 103)
    axes.set_xlabel("training specimens of the true species")
    axes.set_ylabel("species top-1, %")
    _plain(axes)
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)
    return figure
