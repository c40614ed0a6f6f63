"""FASTA files of barcodes, names from their headers or from a table beside them.

Headers are read leniently; these four are known, and what fits none is the record id as a whole:

- `>processid|species|marker[|accession]` (BOLD v3/v4); records of another marker than COI are left out and named
- `>processid|BIN` (BOLDistilled) with names in a separate *_TAXONOMY.tsv, joined by id, else by BIN
- `>BOLD:AAA8924_KM616161;tax=k:Animalia,p:Arthropoda,...,s:Genus_species` (SINTAX)
- `>id|genus|species` (BarcodeBERT)

Wrapped lines, carriage returns, gzip, lower case, gaps and empty sequences are all seen; sequences stay as they are.
"""

import dataclasses
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import FileSource, match_columns, specimens_of, tidy, with_column
from engine.formats.delimited import CleanText, Rows, read_delimited
from engine.formats.lookup import NameIndex
from engine.specimens.taxonomy import RANKS

log = logging.getLogger(__name__)

SUFFIXES = tuple(f".{kind}{packed}" for kind in ("fasta", "fas", "fa", "fna") for packed in ("", ".gz"))
TAXONOMY = "*_TAXONOMY.tsv*"
FIELDS = ("key", "barcode", "bin_uri", *RANKS)
TABLE_KEYS = ("processid", "record_id", "sequence_id", "id", "bin_uri", "bin", "dna_bin")

_BIN = re.compile(r"BOLD:[A-Z]{3}[0-9A-Z]{1,6}")
_BIN_PREFIX = re.compile(rf"({_BIN.pattern})(?:[_.|].*)?")
_COI = re.compile(r"COI(-5P)?|COXI?|CO1|COX1|COXI", re.IGNORECASE)
_MARKER = re.compile(
    r"[A-Za-z0-9]{2,8}-[0-9][A-Za-z]?|COI|CO1|COX1|COXI|COII|COX2|CYTB|16S|18S|28S|12S|ITS[12]?|matK|rbcLa?|EF1.*|H3"
)
_ACCESSION = re.compile(r"[A-Z]{1,2}_?[0-9]{5,8}(\.[0-9]+)?")
_SINTAX_RANKS = {"o": "order", "f": "family", "g": "genus", "s": "species"}
_ROWS = 1 << 14


def read_header(header: str) -> dict[str, str]:
    """Return what a header (without ">") says: some of key, bin_uri, marker, order, family, genus, species."""
    header = header.strip()
    if ";tax=" in header:
        return _read_sintax(header)
    key, *parts = (part.strip() for part in header.split("|"))
    found = {"key": key}
    names: list[str] = []
    for part in parts:
        if _BIN.fullmatch(part):
            found["bin_uri"] = part
        elif _MARKER.fullmatch(part):
            found["marker"] = part
        elif not _ACCESSION.fullmatch(part) and "marker" not in found:
            names.append(part.replace("_", " "))
    if bin_uri := _BIN_PREFIX.fullmatch(key):
        found.setdefault("bin_uri", bin_uri[1])
    return found | _ranks_of(names)


def _read_sintax(header: str) -> dict[str, str]:
    key, _, lineage = header.partition(";tax=")
    found = {"key": key.strip()}
    for part in lineage.partition(";")[0].split(","):
        rank, _, name = part.strip().partition(":")
        if rank in _SINTAX_RANKS and name:
            found[_SINTAX_RANKS[rank]] = name.replace("_", " ") if rank == "s" else name
    if "genus" in found and re.fullmatch("[a-z-]+", found.get("species", "")):
        found["species"] = f"{found['genus']} {found['species']}"
    if bin_uri := _BIN_PREFIX.fullmatch(found["key"]):
        found["bin_uri"] = bin_uri[1]
    return found


def _ranks_of(names: list[str]) -> dict[str, str]:
    """Names without ranks, coarse to fine: the last is the species, a lone word is told by its ending."""
    if len(names) == 1 and names[0] and " " not in names[0]:
        rank = "family" if names[0].endswith("idae") else "order" if names[0].endswith("ptera") else "genus"
        return {rank: names[0]}
    found = {rank: name for rank, name in zip(reversed(RANKS), reversed(names), strict=False) if name}
    species = found.get("species", "")
    if "genus" not in found and re.match("[A-Z][a-z]+ ", species):
        found["genus"] = species.partition(" ")[0]
    elif "genus" in found and re.fullmatch("[a-z-]+", species):
        found["species"] = f"{found['genus']} {species}"
    return found


@dataclasses.dataclass
class FastaSource(FileSource):
    """Records of one or more files; see `engine.formats.registry.SpecimenSource`. `tables`: of names, beside them."""

    tables: list[Path] = dataclasses.field(default_factory=list)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one has no record, or a table no known columns."""
        self.skipped.clear()
        names = _Names(self.tables) if self.tables else None
        for path in self.paths:
            for specimens, _ in specimens_of(self._read(path), path, self.skipped):
                yield names.join(specimens) if names else specimens
        if names:
            log.info("%d of %d records have names in %s", names.num_found, names.num_asked, self.tables)

    def load_image(self, ref: str) -> bytes:
        """Never called: no record has an image reference."""
        raise ValueError(f"missing image file: FASTA has none ({ref})")

    def _read(self, path: Path) -> Iterator[Rows]:
        rows: list[dict[str, str]] = []
        bad: list[tuple[str, str]] = []
        for header, sequence in _records(path):
            if header is None:
                bad.append((f"{path.name} line {sequence[:40]!r}", "text before the first header"))
                continue
            row: dict[str, Any] = read_header(header) | {"barcode": sequence}
            marker = row.pop("marker", "COI-5P")
            if _COI.fullmatch(marker):
                rows.append(row)
            else:
                bad.append((row["key"], f"record of another marker: {marker}"))
            if len(rows) == _ROWS:
                yield _as_table(rows), bad
                rows, bad = [], []
        if rows or bad:
            yield _as_table(rows), bad


def _records(path: Path) -> Iterator[tuple[str | None, str]]:
    """Yield (header without ">", sequence); (None, line) for text that stands before any header."""
    header: str | None = None
    parts: list[str] = []
    with io.TextIOWrapper(io.BufferedReader(CleanText(path), 1 << 20), encoding="utf-8", newline="\n") as lines:
        for line in lines:
            text = line.strip()
            if text.startswith(">"):
                if header is not None:
                    yield header, "".join(parts)
                header, parts = text[1:], []
            elif header is not None:
                parts.append(text)
            elif text:
                yield None, text
    if header is not None:
        yield header, "".join(parts)


def _as_table(rows: list[dict[str, str]]) -> pa.Table:
    return pa.table({field: pa.array([row.get(field) for row in rows], pa.large_string()) for field in FIELDS})


class _Names:
    """Tables of names by record id or BIN."""

    def __init__(self, paths: list[Path]) -> None:
        aliases = {"key": TABLE_KEYS, **{rank: (rank, f"{rank}_name") for rank in RANKS}}

        def pick(names: list[str], path: Path) -> dict[str, str]:
            """Our column -> theirs. Raises ValueError where ids or names are missing."""
            chosen = match_columns(names, aliases)
            if "key" not in chosen or len(chosen) < 2:
                raise ValueError(
                    f"fasta: {path} has no column of ids or none of names; got {', '.join(names)}; "
                    f"allowed: {', '.join(TABLE_KEYS)}, and {', '.join(RANKS)}"
                )
            return chosen

        parts = []
        for path in paths:
            for columns, _ in read_delimited(path, "\t,", False, lambda names, path=path: pick(names, path)):  # type: ignore[misc]
                cells = {field: tidy(columns[field]) for field in columns.column_names}
                empty = pa.nulls(columns.num_rows, pa.large_string())
                parts.append(pa.table({field: cells.get(field, empty) for field in ("key", *RANKS)}))
        table = pa.concat_tables(parts)
        self._index = NameIndex(key or "" for key in table["key"].to_pylist())
        self._names = table.select(list(RANKS)).combine_chunks()
        self.num_found = self.num_asked = 0

    def join(self, specimens: pa.Table) -> pa.Table:
        """Fill in the names that headers did not give, by id, else by BIN."""
        place = self._index.find(specimens["key"].to_pylist())
        by_bin = self._index.find([bin_uri or "-" for bin_uri in specimens["bin_uri"].to_pylist()])
        place = np.where(place < 0, by_bin, place)
        self.num_found, self.num_asked = self.num_found + int((place >= 0).sum()), self.num_asked + len(place)
        found = self._names.take(pa.array(place, mask=place < 0))
        for rank in RANKS:
            specimens = with_column(specimens, rank, pc.coalesce(found[rank].cast(pa.string()), specimens[rank]))
        return specimens


def open_dataset(paths: list[Path], *, taxonomy: Path | None = None) -> FastaSource:
    """Open FASTA files, or all of folders.

    Args:
        paths: files (SUFFIXES) or folders.
        taxonomy: table of names; default: files named TAXONOMY beside the FASTA files.

    Raises ValueError when there is no FASTA file or the table does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file() and path.match(TAXONOMY):
            continue
        inside = sorted(f for f in path.iterdir() if f.name.lower().endswith(SUFFIXES)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"fasta: got folder {path} without such files, allowed: {', '.join(SUFFIXES)}")
        files += inside
    if not files:
        raise ValueError(f"fasta: got {', '.join(map(str, paths))} without sequences, allowed: {', '.join(SUFFIXES)}")
    if taxonomy is not None and not taxonomy.is_file():
        raise ValueError(f"--taxonomy: got {taxonomy}, which is no file; allowed: a table of names by id or BIN")
    beside = {found for file in files for found in file.parent.glob(TAXONOMY)}
    return FastaSource(files, tables=[taxonomy] if taxonomy else sorted(beside))
