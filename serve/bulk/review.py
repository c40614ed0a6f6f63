"""Review: the doubtful rows of a result for a person to look at, and the names that come back.

A review is a CSV: a row a record, the first column `corrected_name` empty. Who fills it in and gives the file to
`taxafuse library add --review` puts these records into the library under the corrected names; who and when stays with
them (identified_by, identified_on).
"""

import csv
import datetime
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.errors import UserError
from engine.specimens.names import read_name
from engine.specimens.taxonomy import RANKS
from engine.store.storage import Location

if TYPE_CHECKING:  # torch: --help does not wait for it
    from train.reference import Library

FIRST = ("corrected_name", "corrected_by", "corrected_on")  # for who reviews
SHOWN = (
    *("key", "name", "rank", "probability", *RANKS, "species_probability", "candidates", "provisional"),
    *("consensus_names", "nearest_key", "nearest_name", "nearest_identity", "nearest_bin", "contaminant", "barcode"),
)
MOST = 20_000  # rows of a review
_FLAGS = {
    "novel": "may be an unknown species",
    "disagrees": "photo and barcode disagree",
    "consensus_conflict": "near references disagree",
    "likely_numt": "likely NUMT",
    "contaminant": "contaminant",
    "barcode_primers": "primers left on",
}


def reasons_of(row: Mapping[str, Any]) -> list[str]:
    """Return why a row is doubtful; [] = it is not, or has no answer at all."""
    if row["error"]:
        return []
    found = [reason for name, reason in _FLAGS.items() if row[name]]
    if row["rank"] != RANKS[-1]:
        found.insert(0, f"stops at {row['rank'] or 'no rank'}: {row['stopped']}")
    return found


class Review:
    """Collects the doubtful rows of a result, the likeliest species first: there a look settles most."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self.left_out = 0

    def add(self, table: pa.Table) -> None:
        """Take the doubtful ones of some rows; beyond MOST those of the least likely species are left out."""
        needed = dict.fromkeys((*SHOWN, *_FLAGS, "error", "stopped"))
        for row in table.select(list(needed)).to_pylist():
            if reasons := reasons_of(row):
                self._rows.append({"reasons": "; ".join(reasons), **{name: row[name] for name in SHOWN}})
        self._rows.sort(key=lambda row: -(row["species_probability"] or 0.0))
        self.left_out += len(self._rows[MOST:])
        del self._rows[MOST:]

    def write(self, path: Path) -> int:
        """Write the review; return how many rows it has."""
        text = io.StringIO()
        writer = csv.DictWriter(text, (*FIRST, "reasons", *SHOWN), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        Location.parse(path).write_atomically(text.getvalue().encode())
        return len(self._rows)


@dataclass(frozen=True)
class Correction:
    """A reviewed record."""

    key: str
    names: Mapping[str, str]  # rank -> name that the corrected name says
    likeliest: Mapping[str, str]  # that the result had
    barcode: str
    by: str
    on: str  # date, ISO


def read_review(path: Path, by: str) -> list[Correction]:
    """Read the rows of a review that have a corrected name.

    Args:
        path: of a CSV that `Review.write` wrote and a person, or a spreadsheet, filled in.
        by: who corrected, where column corrected_by is empty.

    Raises:
        UserError: no review, none corrected, a name that cannot be read, nobody named, no barcode, a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--review", f"{path} ({error})", "a review of taxafuse identify, as UTF-8") from None
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    if absent := [name for name in ("corrected_name", "key", "barcode") if name not in head]:
        raise UserError("--review", f"{path} without columns {', '.join(absent)}", "a review of taxafuse identify")
    found = list(_corrections(path, csv.DictReader(io.StringIO(text), delimiter=delimiter), by))
    if not found:
        raise UserError("--review", f"{path}, in which no corrected_name is filled in", "one or more")
    key, times = Counter(one.key for one in found).most_common(1)[0]
    if times > 1:
        raise UserError("--review", f"{path}: {key} twice", "each key once")
    return found


def _corrections(path: Path, rows: "csv.DictReader[str]", by: str) -> Iterator[Correction]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for row in rows:
        given = {name: (cell or "").strip() for name, cell in row.items() if isinstance(name, str)}
        if not (name := given["corrected_name"]):
            continue
        where = f"{path}, {given['key']}"
        if not (names := read_name(name)):
            raise UserError("--review", f"{where}: {name!r}", "the name of a taxon from order to species")
        if not (who := given.get("corrected_by") or by):
            raise UserError("--review", f"{where} without a name in corrected_by", "one there, or --by NAME")
        if not given["barcode"]:
            raise UserError("--review", f"{where} without a barcode", "records with one: a library is of barcodes")
        likeliest = {rank: given[rank] for rank in RANKS if given.get(rank)}
        yield Correction(given["key"], names, likeliest, given["barcode"], who, given.get("corrected_on") or today)


def corrected(library: "Library", corrections: list[Correction]) -> tuple["Library", int]:
    """Return the library's next version with corrected names, and how many of the records it had already."""
    from dataclasses import replace

    from engine.signals.barcodes import clean

    taxa = {name: lineage for rank in range(len(RANKS)) for name, lineage in _lineages(library, rank)}
    rows = {
        one.key: {"key": one.key, **_lineage(one, taxa), "identified_by": one.by, "identified_on": one.on}
        for one in corrections
    }
    records, known = library.records, set(library.records["key"].to_pylist())
    if there := rows.keys() & known:
        keys = records["key"].to_pylist()
        for name in (*RANKS, "identified_by", "identified_on"):
            old = zip(keys, records[name].to_pylist(), strict=True)
            values = pa.array([rows[key].get(name) if key in there else value for key, value in old], pa.string())
            records = records.set_column(records.column_names.index(name), name, values)
        library = replace(library, records=records.combine_chunks(), version=library.version + 1)
    fresh = [one for one in corrections if one.key not in known]
    if fresh:
        columns = {name for one in fresh for name in rows[one.key]}
        table = pa.Table.from_pylist([{name: rows[one.key].get(name) for name in columns} for one in fresh])
        version = library.version + (not there)
        library = replace(library.extend(table, [clean(one.barcode) for one in fresh]), version=version)
    return library, len(there)


def _lineages(library: "Library", rank: int) -> Iterator[tuple[str, dict[str, str]]]:
    for row in library.taxonomy.lineages[rank].tolist():
        names = dict(zip(RANKS, library.taxonomy.lineage_names(row), strict=True))
        yield str(names[RANKS[rank]]), {above: name for above, name in names.items() if name is not None}


def _lineage(one: Correction, taxa: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the names of a correction with those above them: as the library has them, else as the result had."""
    deepest = max(map(RANKS.index, one.names))
    for rank in reversed(RANKS[: deepest + 1]):
        name = one.names.get(rank)
        if name is not None and name in taxa:
            return {**taxa[name], **one.names}
        if name is not None and one.likeliest.get(rank) == name:
            return {**{above: one.likeliest[above] for above in RANKS[:deepest] if above in one.likeliest}, **one.names}
    return dict(one.names)
