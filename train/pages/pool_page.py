"""The pool on the page: how much each expert counts, and where the pool may answer; made of the metrics."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine import html
from train.inference.calibration import Calibrator
from train.inference.experts import BARCODE, LIBRARY, PHOTO
from train.inference.pool import ANY, EQUAL, POOL
from train.pages import plots

EXPERTS = (PHOTO, BARCODE, LIBRARY)
_OTHERS = (*EXPERTS, EQUAL)  # what a pool may be compared with
_COLOURS = dict(zip(EXPERTS, html.COLOURS, strict=False))


def as_metrics(calibrator: Calibrator, start: str) -> dict[str, float]:
    """Return the numbers of a pool: `<start>/axis/<quality>/<edge>`, `<start>/cell/<bands>/...`."""
    if calibrator.pool is None or calibrator.pool.guarantee is None:
        return {}
    pool, promise = calibrator.pool, calibrator.pool.guarantee
    result = {
        f"{start}/axis/{name}/{number}": edge
        for name, edges in promise.axes.items()
        for number, edge in enumerate(edges)
    }
    for cell in promise.cells:
        one = f"{start}/cell/{','.join(map(str, cell.bands))}"
        result |= {f"{one}/weight/{name}": value for name, value in zip(pool.experts, cell.weights, strict=True)}
        result |= {f"{one}/difference": cell.difference, f"{one}/low": cell.low, f"{one}/groups": cell.groups}
        result |= {f"{one}/pool_answers": float(cell.answers == POOL), f"{one}/best": _OTHERS.index(cell.best)}
    return result


def blocks(values: Mapping[str, float], start: str, title: str) -> list[str]:
    """Return the weights as a picture and the verdicts as a table; [] without a pool."""
    begin = f"{start}/cell/"
    names = {key[len(begin) :].split("/")[0] for key in values if key.startswith(begin)}
    cells = sorted(tuple(map(int, name.split(","))) for name in names)
    if not cells:
        return []
    axes = _axes(values, start)
    caption = f"{title.capitalize()}: mean weight of each expert on val (1 = taken at its word) by length and by blur"
    body = html.table(
        [*(name.replace("n_share", "share of N") for name in axes), "answers", "pool less it", "lower end", "groups"],
        [_row(values, f"{begin}{','.join(map(str, cell))}", cell, axes) for cell in cells],
    )
    return [html.figure(weights_plot(values, start), caption), html.folded(f"Who answers: {title}", body)]


def _axes(values: Mapping[str, float], start: str) -> dict[str, list[float]]:
    axes: dict[str, list[float]] = {}
    for key, edge in values.items():
        if key.startswith(f"{start}/axis/"):
            axes.setdefault(key.split("/")[-2], []).append(edge)
    return {name: sorted(edges) for name, edges in axes.items()}


def band_text(name: str, band: int, edges: list[float]) -> str:
    """Return a band in words: "88 to 125 nt"."""
    if band == ANY:
        return "any"
    if name == "length":
        edges = np.exp(edges).round().tolist()
    shown = [
        f"{edge:.0f} nt" if name == "length" else f"{edge:.0%}" if name == "n_share" else f"{edge:.1f}"
        for edge in edges
    ]
    if band == 0:
        return f"up to {shown[0]}"
    return f"above {shown[-1]}" if band == len(edges) else f"{shown[band - 1]} to {shown[band]}"


def _row(values: Mapping[str, float], one: str, cell: tuple[int, ...], axes: Mapping[str, list[float]]) -> list[str]:
    bands = [band_text(name, band, edges) for band, (name, edges) in zip(cell, axes.items(), strict=True)]
    best = _OTHERS[int(values[f"{one}/best"])]
    answers = "pool" if values[f"{one}/pool_answers"] else best
    gaps = [f"{100 * values[f'{one}/{name}']:+.1f}" for name in ("difference", "low")]
    return [*bands, f"{answers}\nbest without it: {best}", *gaps, f"{values[f'{one}/groups']:,.0f}"]


def weights_plot(values: Mapping[str, float], start: str) -> Figure:
    """Draw the mean weight of each expert against barcode length (left) and against the photo's sharpness (right)."""
    axes = _axes(values, start)
    figure = html.new_figure(10, 3.6)
    panels = figure.subplots(1, 2) if "sharpness" in axes else [figure.subplots()]
    _lines(panels[0], values, start, [(band, *(ANY,) * (len(axes) - 1)) for band in range(len(axes["length"]) + 1)])
    names = [band_text("length", band, axes["length"]) for band in range(len(axes["length"]) + 1)]
    panels[0].set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    panels[0].set(ylabel="weight", xlabel="known nucleotides of the barcode")
    if "sharpness" in axes:
        whole = len(axes["length"])
        _lines(panels[1], values, start, [(whole, 0, band) for band in range(len(axes["sharpness"]) + 1)])
        names = [band_text("sharpness", band, axes["sharpness"]) for band in range(len(axes["sharpness"]) + 1)]
        panels[1].set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        panels[1].set(xlabel="sharpness of the photo (log); whole, clean barcodes")
    for panel in panels:
        panel.grid(color=plots.GRID, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def _lines(panel: Axes, values: Mapping[str, float], start: str, cells: list[tuple[int, ...]]) -> None:
    for expert, colour in _COLOURS.items():
        keys = [f"{start}/cell/{','.join(map(str, cell))}/weight/{expert}" for cell in cells]
        there = [place for place, key in enumerate(keys) if key in values]
        if there:
            panel.plot(
                there, [values[keys[place]] for place in there], marker="o", markersize=4, color=colour, label=expert
            )
