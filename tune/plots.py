"""Pictures of a sweep: every trial as a line across its settings, and the score over two of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from engine.html import new_figure
from tune.ledger import DEFAULT, Entry
from tune.spaces import Choice, LogUniform, Space, label

MAP = "viridis"
STOPPED = "#9a9a9a"
GRID = 80  # points a side of the surface
TICKS = 5


def _whole(search: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in search if entry.state == "finished" and entry.score is not None]


def _at_equal_epochs(search: Sequence[Entry]) -> tuple[int, dict[int, float]]:
    """Return the last epoch that every trial with a score reached, and number -> its score there in percent."""
    histories = {entry.number: dict(entry.history) for entry in search if entry.history}
    epoch = min((max(history) for history in histories.values()), default=0)
    return epoch, {number: 100 * history[epoch] for number, history in histories.items() if epoch in history}


def _limits(scores: Iterable[float]) -> tuple[float, float]:
    """Return the lowest and the highest, at least a tenth of a point apart."""
    values = list(scores) or [0.0]
    return min(values), max(max(values), min(values) + 0.1)


def _place(space: Space, key: str, value: Any) -> float:
    """Position on an axis of 0..1; the recipe's own value may lie outside and is drawn at the nearer end."""
    domain = space[key]
    position = domain.position(value)
    if position is not None:
        return position
    return 0.0 if isinstance(value, (int, float)) and value < min(domain.ends()) else 1.0


def _ticks(space: Space, key: str) -> tuple[list[float], list[str]]:
    """Where an axis is labelled, and with what."""
    domain = space[key]
    if isinstance(domain, Choice):
        values: list[Any] = list(domain.values)
    elif isinstance(domain, LogUniform):
        low, high = np.log10(domain.low), np.log10(domain.high)
        powers = [float(f"{m}e{p}") for p in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in (1, 2, 5)]
        values = [value for value in powers if domain.low <= value <= domain.high]
        while len(values) > TICKS + 1:
            values = [value for value in values if f"{value:e}"[0] == "1"] if len(values) > 3 * 3 else values[::2]
        values = ([0.0] if domain.zero else []) + values
    else:
        values = [float(f"{value:.2g}") for value in np.linspace(domain.ends()[0], domain.ends()[-1], TICKS)]
    return [_place(space, key, value) for value in values], [
        f"{value:g}" if value is not True and value is not False else str(value).lower() for value in values
    ]


def parallel_coordinates(space: Space, search: Sequence[Entry]) -> Figure:
    """Draw each trial as a line across the settings to its score on val.

    A line is coloured when the trial ran to the end, grey when it was stopped (its score cannot be compared), and
    dashed for the recipe's own values.
    """
    keys, whole = list(space), _whole(search)
    low, high = _limits(100 * (entry.score or 0.0) for entry in whole)
    colours = ScalarMappable(Normalize(low, high), MAP)
    figure = new_figure(max(7.5, 1.6 * (len(keys) + 1)), 4.6)
    axes = figure.subplots()
    ends = len(keys)
    for entry in sorted(search, key=lambda e: (e.score or 0.0) if e in whole else -1.0):
        heights = [_place(space, key, entry.values[key]) for key in keys]
        style = "--" if entry.number == DEFAULT else "-"
        if entry in whole:
            score = 100 * (entry.score or 0.0)
            height = 0.04 + 0.92 * (score - low) / (high - low)
            axes.plot(range(ends + 1), [*heights, height], style, color=colours.to_rgba(np.array(score)), linewidth=2)
        else:
            axes.plot(range(ends), heights, style, color=STOPPED, linewidth=0.8, alpha=0.6)
    for place, key in enumerate(keys):
        positions, names = _ticks(space, key)
        _axis(axes, place, positions, names)
    _axis(axes, ends, [0.04, 0.5, 0.96], [f"{value:.1f}" for value in (low, (low + high) / 2, high)])
    axes.set_xticks(range(ends + 1), [*(label(key) for key in keys), "val score, %"])
    axes.set_xlim(-0.15, ends + 0.35)
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    stopped = sum(entry.state == "stopped" for entry in search)
    axes.set_title(
        f"{len(whole)} trials to the end, {stopped} stopped early (grey); dashed: the recipe's own values",
        loc="left",
        fontsize=10,
    )
    return figure


def _axis(axes: Axes, place: int, positions: Sequence[float], names: Sequence[str]) -> None:
    axes.axvline(place, color="#444444", linewidth=1)
    for position, name in zip(positions, names, strict=True):
        axes.plot([place - 0.015, place + 0.015], [position, position], color="#444444", linewidth=1)
        halo = [withStroke(linewidth=3, foreground="white")]
        axes.text(place + 0.03, position, name, fontsize=8, va="center", color="#222222", path_effects=halo)


def surface(space: Space, search: Sequence[Entry], winner: int | None = None) -> Figure | None:
    """Draw the score on val over the first two settings, at the last epoch that all reached; None for one setting.

    The colours between the trials are a Gaussian process through them with a length of a quarter of each axis, paler
    where it knows little. Crosses are trials without a score.
    """
    if len(space) < 2:
        return None
    up, across, *_ = space
    epoch, scores = _at_equal_epochs(search)
    colours = ScalarMappable(Normalize(*_limits(scores.values())), MAP)
    figure = new_figure(7.5, 5.4)
    axes = figure.subplots()
    places = {entry.number: tuple(_place(space, key, entry.values[key]) for key in (across, up)) for entry in search}
    if len(scores) > 2:
        mean, known = _smooth(np.array([places[number] for number in scores]), np.array(list(scores.values())))
        image = colours.to_rgba(mean)
        image[..., 3] = 0.15 + 0.7 * known
        axes.imshow(image, origin="lower", extent=(0, 1, 0, 1), aspect="auto", interpolation="bilinear")
    for entry in search:
        x, y = places[entry.number]
        if entry.number not in scores:
            axes.plot(x, y, "x", color="#333333", markersize=6)
            continue
        score = scores[entry.number]
        shape = "D" if entry.number == DEFAULT else "o"
        axes.plot(
            x,
            y,
            shape,
            color=colours.to_rgba(np.array(score)),
            markeredgecolor="black",
            markersize=7 if entry.state == "stopped" else 10,
            markeredgewidth=2.6 if entry.number == winner else 1.0,
        )
        axes.annotate(f"{score:.1f}", (x, y), (0, 9), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(*_ticks(space, across))
    axes.set_yticks(*_ticks(space, up))
    axes.set_xlabel(label(across))
    axes.set_ylabel(label(up))
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.06)
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(colours, ax=axes, label=f"val score after epoch {epoch}, %")
    text = "small: stopped early; diamond: the recipe's own values"
    axes.set_title(text + ("; thick edge: winner" if winner is not None else ""), loc="left", fontsize=9)
    return figure


def _smooth(points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [GRID, GRID] of a Gaussian process through scores [N] at points [N, 2], and how well it is known, 0..1."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    process = GaussianProcessRegressor(RBF(0.25) + WhiteKernel(0.1), optimizer=None, normalize_y=True)
    process.fit(points, scores)
    side = np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    mean, spread = process.predict(grid, return_std=True)
    known = 1 - spread / max(float(spread.max()), 1e-9)
    return mean.reshape(GRID, GRID), (known / max(float(known.max()), 1e-9)).reshape(GRID, GRID)
