"""Reports for people: one self-contained HTML page of tables and plots, the same bytes for the same content.

The page has no script and loads nothing. It follows the reader's light or dark setting; plots stand on white paper.
"""

import dataclasses
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6", "#b8860b", "#4a4a4a")
"""Of the series of a plot, in order."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --dim: #5b6670; --paper: #ffffff; --line: #d5dbe0; --band: #f3f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ea; --dim: #9aa5ae; --paper: #171b1f; --line: #39424a; --band: #20262b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem;
  border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; overflow-wrap: break-word; }
th { border-bottom: 1px solid var(--line); font-weight: 600; } tbody tr:nth-child(even) { background: var(--band); }
td.n, th.n { text-align: right; white-space: nowrap; }
.wide { overflow-x: auto; } .dim, figcaption { color: var(--dim); font-size: .9rem; }
figure { margin: 1rem 0; } figure svg { background: #fff; border-radius: 4px; max-width: 100%; height: auto; }
@media (max-width: 40rem) { figure { overflow-x: auto; } figure svg { max-width: none; width: 40rem; } }
small { font-size: .8em; white-space: nowrap; } details { margin: .5rem 0; } summary { cursor: pointer; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it: HTML made by the functions below."""

    title: str
    blocks: Sequence[str]


def page(title: str, sections: Iterable[Section], lead: str = "") -> str:
    """Return a whole HTML page. `lead` is the plain text under the title."""
    parts = ['<!doctype html>\n<html lang="en"><head><meta charset="utf-8">']
    parts.append('<meta name="viewport" content="width=device-width, initial-scale=1">')
    parts.append(f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>")
    parts.append(f"<h1>{html.escape(title)}</h1>")
    if lead:
        parts.append(paragraph(lead))
    for section in sections:
        parts.append(f"<section><h2>{html.escape(section.title)}</h2>")
        parts += [*section.blocks, "</section>"]
    return "\n".join([*parts, "</body></html>\n"])


def paragraph(text: str, dim: bool = False) -> str:
    """Return plain text as a paragraph."""
    return f"<p{' class=dim' if dim else ''}>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of plain values: ints get thousands separators, None is a dash, numbers stand to the right.

    Shares are given as text ("12.3%"): text that begins with a digit and ends with % stands to the right too. What
    follows a line break in a text is set small below it.
    """
    rows = list(rows)
    numeric = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(header))]
    marks = [' class="n"' if is_number else "" for is_number in numeric]
    head = "".join(f"<th{mark}>{html.escape(name)}</th>" for name, mark in zip(header, marks, strict=True))
    body = [
        "<tr>" + "".join(f"<td{mark}>{_cell(value)}</td>" for value, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def bullets(texts: Iterable[str]) -> str:
    """Return plain texts as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def folded(summary: str, *blocks: str) -> str:
    """Return blocks behind a line that opens them."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(blocks)}</details>"


def figure(plot: "Figure", caption: str) -> str:
    """Return a matplotlib figure as inline SVG, with a caption that also serves as its description."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.family": "sans-serif"}):
        plot.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"(?s)<metadata>.*?</metadata>", "", svg[svg.index("<svg") :]).strip()
    described = html.escape(caption)
    return f'<figure role="img" aria-label="{described}">{svg}<figcaption>{described}</figcaption></figure>'


def new_figure(width: float = 7.5, height: float = 4.0) -> "Figure":
    """Return an empty figure in the pages' style, in inches; free of pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def plain_ticks(axis: "Axis") -> None:
    """Label a (logarithmic) axis 1, 10, 100, 1,000: read more easily than powers, and drawn several times as fast."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value[:1].isdigit() and value.endswith("%")
    return value is None or isinstance(value, (int, float))


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    first, _, below = (f"{value:.4g}" if isinstance(value, float) else str(value)).partition("\n")
    return html.escape(first) + (f'<br><small class="dim">{html.escape(below)}</small>' if below else "")
