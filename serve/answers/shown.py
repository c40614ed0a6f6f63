"""An answer as a notebook shows it: the lineage with its probabilities as bars, and what is odd."""

from html import escape
from typing import Any

_CELL = 'style="text-align:left"'


def answer_html(answer: Any) -> str:
    """Return an `Answer` as a small table of HTML; all that the input said is escaped."""
    name = f"{answer.answer_name} ({answer.answer_rank})" if answer.answer_name else "no answer"
    rows = []
    for rank in answer.ranks:
        share = rank.probability or 0.0
        bar = f"background:{'#4a7' if rank.reached else '#bbb'};width:{100 * share:.0f}px;height:0.8em"
        cells = (escape(rank.rank), escape(rank.name or "-"), f"{share:.3f}", f'<div style="{bar}"></div>')
        rows.append("<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in cells) + "</tr>")
    notes = [answer.why]
    if answer.novelty.flagged:
        notes.append("may be an unknown species")
    if answer.consensus is not None and answer.consensus.conflict:
        notes.append(f"near references disagree: {', '.join(answer.consensus.names)}")
    if answer.barcode is not None:
        notes += answer.barcode.sentences()
    lines = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return f"<div><b>{escape(answer.key)}: {escape(name)}</b><table>{''.join(rows)}</table>{lines}</div>"
