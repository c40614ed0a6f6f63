"""The findings for people and programs: a screen of text, check.json, check.html, one CSV per check."""

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from engine import html
from engine.curation import Finding, SpecimenSet
from engine.store.storage import Location

JSON_NAME = "check.json"
HTML_NAME = "check.html"
EXCLUSIONS_NAME = "suggested_exclusions.csv"
_SHOWN = 12  # rows of a table in check.html


def as_text(sets: Sequence[SpecimenSet], findings: Sequence[Finding]) -> str:
    """One screen: what was looked at, one line for each check."""
    lines = [f"{one.name}: {one.index.num_rows} specimens, {len(one.unique)} different barcodes" for one in sets] + [""]
    several = len(sets) > 1
    for finding in findings:
        mark = "note " if finding.is_note else "found" if finding.count else "ok   "
        where = f"  [{finding.of_set}]" if several and finding.of_set else ""
        lines.append(f"{mark} {finding.count:>9,} {finding.unit:<22} {finding.title}{where}")
        facts = _short(finding.facts)
        if facts and finding.count:
            lines.append(f"{'':<16}{facts}")
    return "\n".join(lines)


def _short(facts: Any, limit: int = 200) -> str:
    parts = []
    for name, value in facts.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{key} {number}" for key, number in value.items() if number)
            parts += [f"{name}: {inner}"] if inner else []
        elif value:
            parts.append(f"{name} {value}")
    joined = "; ".join(parts)
    return joined if len(joined) <= limit else joined[: limit - 4] + " ..."


def write(out: Location, sets: Sequence[SpecimenSet], findings: Sequence[Finding]) -> dict[str, Any]:
    """Write all files into a folder; return what check.json holds."""
    out.make_folder()
    report: dict[str, Any] = {
        "sets": [
            {"set": one.name, "specimens": one.index.num_rows, "different_barcodes": len(one.unique)} for one in sets
        ],
        "found": sum(bool(finding.count) and not finding.is_note for finding in findings),
        "findings": [],
    }
    tables: dict[str, list[pa.Table]] = {}
    for finding in findings:
        name = f"check_{finding.check}.csv"
        if finding.table.num_rows:
            tables.setdefault(name, []).append(_with_set(finding))
        report["findings"].append(
            {
                "check": finding.check,
                "set": finding.of_set,
                "title": finding.title,
                "count": finding.count,
                "unit": finding.unit,
                "note": finding.is_note,
                "facts": dict(finding.facts),
                "csv": name if finding.table.num_rows else None,
            }
        )
        if finding.check == "suspicion" and finding.table.num_rows:
            excluded = _with_set(finding).filter(finding.table["exclude"])
            tables.setdefault(EXCLUSIONS_NAME, []).append(excluded.select(["set", "key", "rank", "name", "score"]))
    for name, parts in tables.items():
        (out / name).write_atomically(_csv(pa.concat_tables(parts, promote_options="permissive")))
    (out / HTML_NAME).write_atomically(as_html(sets, findings).encode())
    (out / JSON_NAME).write_atomically(json.dumps(report, indent=1, ensure_ascii=False).encode())
    return report


def _with_set(finding: Finding) -> pa.Table:
    if "set" in finding.table.schema.names:
        return finding.table
    return finding.table.add_column(0, "set", pa.array([finding.of_set] * finding.table.num_rows, pa.string()))


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa_csv.write_csv(table, sink)
    return sink.getvalue()


def as_html(sets: Sequence[SpecimenSet], findings: Sequence[Finding]) -> str:
    """Return a page that explains every check, shows its numbers and its first rows."""
    several = len(sets) > 1
    overview = [
        ("note" if one.is_note else "found" if one.count else "ok", one.title, one.of_set, one.count, one.unit)
        for one in findings
    ]
    header = ("", "check", "set", "count", "of")
    sections = [
        html.Section(
            "Overview",
            [
                html.table(
                    ("set", "specimens", "different barcodes"),
                    [(s.name, s.index.num_rows, len(s.unique)) for s in sets],
                ),
                html.table(header, overview),
            ],
        )
    ]
    sections += [_section(finding, several) for finding in findings if finding.count or finding.table.num_rows]
    names = ", ".join(one.name for one in sets)
    lead = f"{names}. Full lists are in the CSV files beside this page."
    return html.page("What to look at before training", sections, lead)


def _section(finding: Finding, several: bool) -> html.Section:
    title = f"{finding.title}: {finding.count:,} {finding.unit}"
    blocks = [html.paragraph(finding.meaning)]
    if finding.check == "bins":
        blocks.append(_grades(finding.facts["grades"]))
    facts = _fact_rows(finding.facts)
    if facts:
        blocks.append(html.table(("", "count"), facts))
    if finding.table.num_rows:
        shown = finding.table.slice(0, _SHOWN)
        rows = [[_cell(value) for value in row.values()] for row in shown.to_pylist()]
        more = f" of {finding.table.num_rows:,}; all in check_{finding.check}.csv"
        blocks.append(html.paragraph(f"First {shown.num_rows}{more}", dim=True))
        blocks.append(html.table(shown.schema.names, rows))
    return html.Section(f"{title} ({finding.of_set})" if several and finding.of_set else title, blocks)


def _fact_rows(facts: Any) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", number) for key, number in value.items()]
        else:
            rows.append((name, value))
    return rows


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and len(value) > 120:
        return value[:117] + "..."
    return value


def _grades(grades: dict[str, int]) -> str:
    plot = html.new_figure(6.0, 2.4)
    axes = plot.subplots()
    bars = axes.bar(list(grades), list(grades.values()), color=html.COLOURS[0])
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.margins(y=0.15)
    axes.set_ylabel("species")
    return html.figure(plot, "Species per BAGS grade")
