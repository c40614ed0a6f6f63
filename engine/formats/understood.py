"""What was understood of a source's names: how many per rank, from which column or field, and what was not."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from engine.specimens.names import plain, rank_of, read_name, read_ranks
from engine.specimens.taxonomy import RANKS

CELLS = (*RANKS, "name", "name_rank", "epithet")
"""Fields that names are read from; `name` holds names of any rank, `epithet` the second word of a species' name."""
_EXAMPLES = 5
_KEPT = 1000  # different cells that are remembered

NOTHING_NAMED = "no name was understood in any record: all of them are without a label"


@dataclasses.dataclass
class NameLog:
    """Counts what names a source gave; `total` records."""

    total: int = 0
    named: Counter[str] = dataclasses.field(default_factory=Counter)  # rank -> records
    origins: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)  # rank -> columns or fields, in order
    not_understood: Counter[str] = dataclasses.field(default_factory=Counter)  # cell -> records
    notes: Counter[str] = dataclasses.field(default_factory=Counter)  # remark -> records

    def add(self, ranks: Mapping[str, pa.Array], origins: Mapping[str, str], unread: Mapping[str, int]) -> None:
        """Take in some records.

        Args:
            ranks: per rank the names, null = none.
            origins: per rank (or field) where its names stand.
            unread: cells of which no name was understood, and how many records have each.
        """
        self.total += len(ranks[RANKS[0]])
        for rank in RANKS:
            count = len(ranks[rank]) - ranks[rank].null_count
            self.named[rank] += count
            place = origins.get(rank) or origins.get("name")
            if count and place:
                self.origins.setdefault(rank, {})[place] = None
        for cell, count in unread.items():
            if cell in self.not_understood or len(self.not_understood) < _KEPT:
                self.not_understood[cell] += count

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for a report; `describe_names` makes lines of them."""
        return {
            "records": self.total,
            "named": {rank: self.named[rank] for rank in RANKS},
            "from": {rank: list(self.origins.get(rank, ())) for rank in RANKS},
            "not_understood": {
                "records": sum(self.not_understood.values()),
                "examples": [cell for cell, _ in self.not_understood.most_common(_EXAMPLES)],
            },
            "notes": dict(self.notes),
        }


def describe_names(names: Mapping[str, Any]) -> list[str]:
    """Return lines for people of what `NameLog.to_json` gave."""
    lines = []
    for rank in RANKS:
        places = ", from " + ", ".join(names["from"][rank]) if names["from"][rank] else ""
        lines.append(f"{rank + ':':<16} named in {names['named'][rank]} of {names['records']}{places}")
    unread = names["not_understood"]
    if unread["records"]:
        shown = ", ".join(repr(cell) for cell in unread["examples"])
        lines.append(f"not understood:  names of {unread['records']} records, e.g. {shown}")
    lines += [f"note:            {note}: {count}" for note, count in names["notes"].items()]
    return lines


def is_nameless(names: Mapping[str, Any]) -> bool:
    """Return whether there are records and none has a name; `names`: as `NameLog.to_json` gives them."""
    return bool(names["records"]) and not any(names["named"].values())


def warn_of_names(names: Mapping[str, Any]) -> None:
    """Print a warning on stderr, in colour on a terminal, where no record has a name."""
    if is_nameless(names):
        text = f"warning: {NOTHING_NAMED}"
        print(f"\033[33m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr)  # noqa: T201


def read_names(columns: pa.Table, log: NameLog | None) -> dict[str, pa.Array]:
    """Return {rank: names} of a table with some of CELLS, read as `engine.specimens.names` does; null = unknown.

    Python sees each different combination of cells once. Where a cell stands is in its field's metadata ("origin"),
    else its own name.
    """
    fields = [field for field in CELLS if field in columns.column_names]
    cells = [columns[field].combine_chunks().dictionary_encode() for field in fields]
    code = np.zeros(columns.num_rows, dtype=np.int64)
    for column in cells:
        _, code = np.unique(
            code * (len(column.dictionary) + 1) + np.asarray(column.indices.fill_null(len(column.dictionary))),
            return_inverse=True,
        )
    _, first, inverse, counts = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    taken = [column.take(pa.array(first)).to_pylist() for column in cells]
    rows: list[dict[str, str | None]] = [dict(zip(fields, row, strict=True)) for row in zip(*taken, strict=True)]
    rows = rows or [{}] * len(first)
    found = [read_ranks(row) for row in rows]
    names = {rank: pa.array([row.get(rank) for row in found], pa.string()).take(pa.array(inverse)) for rank in RANKS}
    if log is not None:
        unread: Counter[str] = Counter()
        for row, said, count in zip(rows, found, counts.tolist(), strict=True):
            if cell := _not_understood(row, said):
                unread[cell] += count
        log.add(names, {field: _origin(columns.schema.field(field)) for field in fields}, unread)
    return names


def _not_understood(row: Mapping[str, str | None], said: Mapping[str, str]) -> str | None:
    """Return a cell that held something of which nothing was taken, the finest rank first."""
    for field in ("species", "name", "epithet", "genus", "family", "order"):
        cell = row.get(field)
        if not cell:
            continue
        if field == "name":
            if "species" not in said and not read_name(cell) and rank_of(plain(cell)) != "higher":
                return cell
        elif {"epithet": "species"}.get(field, field) not in said:
            return cell
    return None


def with_origins(table: pa.Table, origins: Mapping[str, str] | str) -> pa.Table:
    """Return the table with, in its fields' metadata, the column or field of the source that each comes from."""
    places: Iterable[tuple[str, str]] = (
        ((name, origins) for name in table.column_names) if isinstance(origins, str) else origins.items()
    )
    by_name = dict(places)
    fields = [
        field.with_metadata({"origin": by_name[field.name]}) if field.name in by_name else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _origin(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"origin", field.name.encode()).decode()
