"""FASTA files of barcodes, names from their headers (`engine.formats.headers`) or from a table of names.

Records of another marker than COI are left out and named. Wrapped lines, any line ends, files glued without a newline
between them, compression, lower case, gaps and empty sequences are all seen; sequences stay as they are.
"""

import dataclasses
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.clean_text import CleanText, bounded_lines
from engine.formats.columns import FileSource, match_columns, specimens_of, tidy, with_column
from engine.formats.delimited import Rows, read_delimited
from engine.formats.headers import read_header, read_taxonomy
from engine.formats.heading import Header
from engine.formats.lookup import NameIndex
from engine.formats.markers import is_coi
from engine.formats.row_order import LeftOut, with_rows
from engine.formats.understood import read_names, with_origins
from engine.formats.unpacked import inner_name
from engine.specimens.taxonomy import RANKS
from engine.store.limits import MAX_BARCODE_BYTES, MAX_ROWS_BYTES

log = logging.getLogger(__name__)

SUFFIXES = (".fasta", ".fas", ".fa", ".fna", ".fsa", ".ffn")  # behind them also that of a packing
TAXONOMY = re.compile(r"(.*[-_. ])?taxonomy\.(tsv|txt|csv)", re.IGNORECASE)
FIELDS = ("key", "barcode", "bin_uri", *RANKS)
TABLE_KEYS = (
    *("processid", "record_id", "sequence_id", "feature id", "feature_id", "featureid", "seqid", "accession"),
    *("#otu id", "otu id", "otu", "asv", "id", "bin_uri", "bin", "dna_bin"),
)
LINEAGES = ("taxon", "taxonomy", "lineage", "classification", "taxonomic_path", "scientificname", "scientific_name")
_GLUED = re.compile(r"([A-Za-z*.\-]+)>(?=\S)")
_ROWS = 1 << 14
_PIECE = 1 << 16  # letters of a line read at once, and of the longest header


def is_fasta(path: Path) -> bool:
    """Return whether a file's name, without that of its packing, is one of FASTA."""
    return inner_name(path).endswith(SUFFIXES)


def is_taxonomy(path: Path) -> bool:
    """Return whether a file's name says that it is a table of names for a FASTA file beside it."""
    return bool(TAXONOMY.fullmatch(inner_name(path)))


@dataclasses.dataclass
class FastaSource(FileSource):
    """Records of one or more files; see `engine.formats.registry.SpecimenSource`. `tables`: of names, beside them."""

    tables: list[Path] = dataclasses.field(default_factory=list)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one has no record, or a table no known columns."""
        self.start()
        names = _Names(self.tables) if self.tables else None
        for path in self.paths:
            for specimens, _ in specimens_of(self._read(path), path, self):
                yield names.join(specimens) if names else specimens
        if names and names.num_asked:
            shown = ", ".join(map(str, self.tables))
            level = logging.INFO if names.num_found else logging.WARNING
            log.log(level, "%s: names for %d of %d records", shown, names.num_found, names.num_asked)
            for rank in RANKS:
                if names.num_named[rank]:
                    self.names.origins.setdefault(rank, {})[shown] = None
                    self.names.named[rank] += names.num_named[rank]

    def load_image(self, ref: str) -> bytes:
        """Never called: no record has an image reference."""
        raise ValueError(f"missing image file: FASTA has none ({ref})")

    def _read(self, path: Path) -> Iterator[Rows]:
        rows: list[dict[str, str]] = []
        bad: list[tuple[str, str]] = []
        known_name = sum(other.name == path.name for other in self.paths) == 1
        letters = first = 0
        for number, (header, sequence, problem) in enumerate(_records(path), start=1):
            if len(rows) + len(bad) >= _ROWS or letters > MAX_ROWS_BYTES:
                yield with_rows(_as_table(rows), first), bad
                first, rows, bad, letters = first + len(rows), [], [], 0
            if header is None or problem:
                place = f"record {header[:40]!r}" if header else f"line {sequence[:40]!r}"
                bad.append(LeftOut(f"{path.name} {place}", problem or "", first + len(rows)))
                continue
            letters += len(sequence)
            row: dict[str, Any] = read_header(header) | {"barcode": sequence}
            row.setdefault("key", f"{path.name if known_name else path}#{number}")  # a header that is but names
            marker = row.pop("marker", "COI-5P")
            if is_coi(marker):
                rows.append(row)
            else:
                bad.append(LeftOut(row["key"], f"record of another marker: {marker}", first + len(rows)))
        if rows or bad:
            yield with_rows(_as_table(rows), first), bad


def _records(path: Path) -> Iterator[tuple[str | None, str, str]]:
    """Yield (header without ">", sequence, why it is left out or ""); header None for text before any header."""
    record = _Record()
    clean = CleanText(path, returns_end_lines=True)
    with io.TextIOWrapper(io.BufferedReader(clean, 1 << 20), encoding="utf-8", newline="\n") as lines:
        in_header = False  # the rest of a header that is longer than a piece
        for piece in iter(lambda: lines.readline(_PIECE), ""):
            text, ends = piece.strip(), piece.endswith("\n")
            if in_header:
                in_header = not ends
                continue
            if record.header is not None and (glued := _GLUED.match(text)):  # the file before had no newline at its end
                record.add(glued[1])
                text = text[glued.end() - 1 :]
            if text.startswith(">"):
                if record.header is not None:
                    yield record.whole()
                in_header = not ends and len(piece) == _PIECE
                record = _Record(text[1:], f"header of {_PIECE:,} letters or more" if in_header else "")
            elif record.header is not None:
                record.add(text)
            elif text:
                yield None, text, "text before the first header"
    if record.header is not None:
        yield record.whole()


class _Record:
    """A record while its lines come; of a sequence that is too long nothing is held."""

    def __init__(self, header: str | None = None, problem: str = "") -> None:
        self.header, self.problem = header, problem
        self._parts: list[str] = []
        self._length = 0

    def add(self, text: str) -> None:
        """Take a piece of the sequence."""
        self._length += len(text)
        if self._length <= MAX_BARCODE_BYTES:
            self._parts.append(text)
        else:
            self._parts.clear()

    def whole(self) -> tuple[str | None, str, str]:
        """Return header, sequence and problem."""
        if self._length > MAX_BARCODE_BYTES:
            self.problem = f"barcode of more than {MAX_BARCODE_BYTES:,} letters: {self._length:,}"
        return self.header, "".join(self._parts), self.problem


def _as_table(rows: list[dict[str, str]]) -> pa.Table:
    columns = {field: pa.array([row.get(field) for row in rows], pa.large_string()) for field in FIELDS}
    return with_origins(pa.table(columns), dict.fromkeys(RANKS, "headers"))


class _Names:
    """Tables of names by record id or BIN, with a column per rank or one of lineages; also without a header."""

    def __init__(self, paths: list[Path]) -> None:
        parts = [part for path in paths for part in _read_names_of(path)]
        table = pa.concat_tables(parts)
        self._index = NameIndex(key or "" for key in table["key"].to_pylist())
        self._names = table.select(list(RANKS)).combine_chunks()
        self.num_found = self.num_asked = 0
        self.num_named: Counter[str] = Counter()  # records per rank that had no name before

    def join(self, specimens: pa.Table) -> pa.Table:
        """Fill in the names that headers did not give, by id, else by BIN."""
        place = self._index.find(specimens["key"].to_pylist())
        by_bin = self._index.find([bin_uri or "-" for bin_uri in specimens["bin_uri"].to_pylist()])
        place = np.where(place < 0, by_bin, place)
        self.num_found, self.num_asked = self.num_found + int((place >= 0).sum()), self.num_asked + len(place)
        found = self._names.take(pa.array(place, mask=place < 0))
        for rank in RANKS:
            joined = pc.coalesce(found[rank].cast(pa.string()), specimens[rank])
            self.num_named[rank] += specimens[rank].null_count - joined.null_count
            specimens = with_column(specimens, rank, joined)
        return specimens


def _read_names_of(path: Path) -> Iterator[pa.Table]:
    """Yield pieces of a table of names: "key" and RANKS. Raises ValueError where ids or names are missing."""
    aliases = {"key": TABLE_KEYS, **{rank: (rank, f"{rank}_name") for rank in RANKS}, "lineage": LINEAGES}
    names = Header(path, "\t,").names
    if "key" not in match_columns(names, aliases) and len(names) == 2 and _is_lineage_cell(names[1]):
        yield from _read_two_columns(path)
        return

    def pick(names: list[str]) -> dict[str, str]:
        """Choose the columns of ids and names; raise ValueError where one is missing."""
        chosen = match_columns(names, aliases)
        if "key" not in chosen or len(chosen) < 2:
            raise ValueError(
                f"fasta: {path} has no column of ids or none of names; got {', '.join(names)}; "
                f"allowed: {', '.join(TABLE_KEYS)}, and {', '.join((*RANKS, *LINEAGES))}"
            )
        return chosen

    for columns, _ in read_delimited(path, pick):
        ranks = read_names(columns, None)
        table = pa.table({"key": tidy(columns["key"]).cast(pa.large_string()), **ranks})
        if "lineage" in columns.column_names:
            said = [read_taxonomy(cell) if cell else {} for cell in columns["lineage"].to_pylist()]
            for rank in RANKS:
                names_of_rank = pa.chunked_array([pa.array([row.get(rank) for row in said], pa.string())])
                merged = pc.coalesce(table[rank], names_of_rank)
                table = table.set_column(table.column_names.index(rank), rank, merged)
        yield table.combine_chunks()


def _is_lineage_cell(cell: str) -> bool:
    return ";" in cell and bool(read_taxonomy(cell))


def _read_two_columns(path: Path) -> Iterator[pa.Table]:
    """Yield the names of a table without a header: id, lineage."""
    with io.TextIOWrapper(io.BufferedReader(CleanText(path), 1 << 20), encoding="utf-8") as text:
        delimiter = Header(path, "\t,").delimiter
        parts = (line.partition(delimiter) for line in bounded_lines(text))
        rows = [(key.strip(), read_taxonomy(cell)) for key, _, cell in parts]
    columns = {rank: pa.array([said.get(rank) for _, said in rows], pa.string()) for rank in RANKS}
    yield pa.table({"key": pa.array([key for key, _ in rows], pa.large_string()), **columns})


def open_dataset(paths: list[Path], *, taxonomy: Path | None = None) -> FastaSource:
    """Open FASTA files, or all of folders.

    Args:
        paths: files (SUFFIXES) or folders.
        taxonomy: table of names; default: files named TAXONOMY beside the FASTA files.

    Raises ValueError when there is no FASTA file or the table does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file() and is_taxonomy(path):
            continue
        inside = sorted(filter(is_fasta, path.iterdir())) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"fasta: got folder {path} without such files, allowed: {', '.join(SUFFIXES)}")
        files += inside
    if not files:
        raise ValueError(f"fasta: got {', '.join(map(str, paths))} without sequences, allowed: {', '.join(SUFFIXES)}")
    if taxonomy is not None and not taxonomy.is_file():
        raise ValueError(f"--taxonomy: got {taxonomy}, which is no file; allowed: a table of names by id or BIN")
    beside = {found for file in files for found in file.parent.iterdir() if is_taxonomy(found)}
    return FastaSource(files, tables=[taxonomy] if taxonomy else sorted(beside))
