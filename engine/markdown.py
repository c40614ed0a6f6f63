"""Markdown tables whose columns line up, and how a share is written in them."""

import math
from collections.abc import Mapping, Sequence

Metrics = Mapping[str, float]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with aligned columns; those with a letter in their first row to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    is_text = [any(letter.isalpha() for letter in cell) and "to" not in cell.split() for cell in rows[0]]
    sides = [str.ljust if left else str.rjust for left in is_text]
    rule = ["-" * width if left else "-" * (width - 1) + ":" for left, width in zip(is_text, widths, strict=True)]
    lines = [[sides[i](cell, widths[i]) for i, cell in enumerate(row)] for row in [header, *rows]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])


def percent(value: float | None) -> str:
    """Return 0.9312 as "93.1"; a dash where nothing could be measured."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def interval(values: Metrics, key: str) -> str:
    """Return the 95% interval of a metric like 92.4–93.8; "" where there is none."""
    low, high = (percent(values.get(f"{key}_{side}")) for side in ("low", "high"))
    return "" if low == "–" else f"{low}–{high}"


def with_interval(values: Metrics, key: str) -> str:
    """Return a share in percent, with its interval in a second line where it has one."""
    return "\n".join(part for part in (percent(values.get(key)), interval(values, key)) if part)
