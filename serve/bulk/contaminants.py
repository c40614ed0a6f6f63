"""What is no specimen of the study: hits in a small library of human, bacteria and laboratory animals."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.errors import UserError
from engine.specimens.taxonomy import RANKS
from engine.store.shards import file_sha256
from serve.answers.answer import Answer, QueryError
from serve.bulk.sources import open_source

if TYPE_CHECKING:  # torch: --help does not wait for it
    from train.reference import Library

NEAR = 0.95  # identity from which a barcode is a contaminant, if no reference is nearer


def open_contaminants(path: str) -> "Library":
    """Return the library in a folder, or one made in memory of the barcodes of a file.

    Raises ValueError for a path that does not exist, and where nothing can be read.
    """
    from train.reference import Library, read_source
    from train.reference.library import MANIFEST

    if not Path(path).exists():
        raise UserError("--contaminants", path, "a FASTA, a table or a library of contaminants")
    if (Path(path) / MANIFEST).is_file():
        return Library.load(path)
    found = read_source(open_source([path]))
    return Library.build(found.records, found.barcodes)


def digest(path: str) -> str:
    """Return a checksum of what `open_contaminants` opens."""
    from train.reference.library import MANIFEST, read_manifest

    place = Path(path)
    return str(read_manifest(place)["checksum"]) if (place / MANIFEST).is_file() else file_sha256(place)


def with_contaminants(
    table: pa.Table, answers: Sequence[Answer | QueryError], library: "Library", threads: int
) -> pa.Table:
    """Return rows of answers with columns contaminant and contaminant_identity filled."""
    barcodes = ["" if isinstance(one, QueryError) or not one.barcode else one.barcode.sequence for one in answers]
    hits = library.search(barcodes, threads=threads)
    names: list[str | None] = [None] * len(barcodes)
    shares: list[float | None] = [None] * len(barcodes)
    for place, nearest in enumerate(table["nearest_identity"].to_pylist()):
        span = slice(hits.start[place], hits.start[place + 1])
        if not len(identity := hits.identity[span]):
            continue
        best = int(np.argmax(identity))
        if identity[best] >= max(NEAR, nearest or 0.0):
            names[place] = _name(library, hits.reference[span][best])
            shares[place] = float(identity[best])
    for name, values in (("contaminant", names), ("contaminant_identity", shares)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return table


def _name(library: "Library", haplotype: int) -> str:
    """Return the deepest name of a barcode's first specimen, its key where it has none."""
    rows, begin = library.rows_of
    record = library.records.slice(int(rows[begin[haplotype]]), 1).to_pylist()[0]
    return next((record[rank] for rank in reversed(RANKS) if record[rank]), record["key"])
