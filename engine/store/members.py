"""Stored barcodes, photos and descriptions by rows of an index, each member checked by its tar header.

A shard is read in place (`engine.store.shards.ShardReader`). A member's tar header says whose it is and how long: what
an index says otherwise (a place inside another member, two members exchanged) is an error that names the specimen.
The batches of a training read with `ShardReader` itself (`engine.batches.prepare`), many members in one request.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from engine.specimens.schema import DNA_SUFFIX, IMAGE_SUFFIX, META_SUFFIX, BadSpecimen
from engine.store.limits import MAX_BARCODE_BYTES, MAX_META_BYTES
from engine.store.shards import ShardReader
from engine.store.storage import Location
from engine.store.tars import BLOCK

COLUMNS = ("key", "shard", "offset", "size", "image_offset", "image_size", "dna_offset", "dna_size")
"""What a row needs; a row of several folders' indices has `folder` too."""


class Members:
    """Read what is stored of specimens, given rows of an index as mappings with COLUMNS. Thread-safe, picklable.

    Args:
        folder: of the shards; rows with a `folder` name their own.
        max_open: files open at a time.
    """

    def __init__(self, folder: str | Location = "/", max_open: int = 256) -> None:
        self.folder = Location.parse(folder)
        self._reader = ShardReader(self.folder, max_open)

    def fetch(self, rows: Sequence[Mapping[str, Any]], *kinds: str) -> None:
        """Read ahead the `kinds` ("dna", "image") of some rows, see `ShardReader.fetch`."""
        self._reader.fetch(
            (self._shard(row), row[f"{kind}_offset"] - BLOCK, row[f"{kind}_size"] + BLOCK)
            for row in rows
            for kind in kinds
            if row[f"{kind}_offset"] >= 0
        )

    def barcode(self, row: Mapping[str, Any]) -> str | None:
        """Return a specimen's barcode as it was stored, None = it has none. Raises BadSpecimen."""
        if row["dna_offset"] < 0:
            return None
        if row["dna_size"] > MAX_BARCODE_BYTES:
            raise self._bad(row, f"barcode of {row['dna_size']:,} bytes, allowed at most {MAX_BARCODE_BYTES:,}")
        return self._member(row, row["dna_offset"], row["dna_size"], DNA_SUFFIX).decode("ascii", "replace")

    def photo(self, row: Mapping[str, Any]) -> bytes | None:
        """Return a specimen's photo, None = it has none. Raises BadSpecimen."""
        if row["image_offset"] < 0:
            return None
        return self._member(row, row["image_offset"], row["image_size"], IMAGE_SUFFIX)

    def description(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a specimen's stored JSON (country, coordinates, names), its last member. Raises BadSpecimen."""
        payload = max(row[f"{kind}_offset"] + row[f"{kind}_size"] for kind in ("dna", "image"))
        start = payload + -payload % BLOCK if payload > 0 else row["offset"]
        size = row["offset"] + row["size"] - start - BLOCK  # filled up with zeros
        if not 0 < size <= MAX_META_BYTES:
            raise self._bad(row, f"description of {size:,} bytes, allowed 1 to {MAX_META_BYTES:,}")
        text = self._member(row, start + BLOCK, size, META_SUFFIX)
        try:
            value = json.loads(text.rstrip(b"\0"))
        except (ValueError, RecursionError) as error:
            raise self._bad(row, f"description that is no JSON ({error})") from None
        if not isinstance(value, dict):
            raise self._bad(row, "description that is no JSON object")
        return value

    def barcodes(self, rows: pa.Table) -> Iterator[str | None]:
        """Yield the barcode of every row in order, a few thousand rows held at a time. Raises BadSpecimen."""
        wanted = [name for name in ("folder", *COLUMNS) if name in rows.column_names]
        for batch in rows.select(wanted).to_batches(max_chunksize=1 << 12):
            listed = batch.to_pylist()
            self.fetch(listed, "dna")
            yield from map(self.barcode, listed)

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        self._reader.close()

    def _member(self, row: Mapping[str, Any], offset: int, size: int, suffix: str) -> bytes:
        try:
            data = self._reader.read(self._shard(row), offset - BLOCK, size + BLOCK)
        except BadSpecimen as error:
            raise self._bad(row, error.reason) from None
        name = f"{row['key']}.{suffix}".encode()
        stored = data[124:135]
        full = -(-(int(stored, 8) if stored.isdigit() else -1) // BLOCK) * BLOCK
        fits = full == size if suffix == META_SUFFIX else stored == b"%011o" % size
        if data[:100].rstrip(b"\0") != name or not fits:
            raise self._bad(row, f"no member {name.decode(errors='replace')} of {size:,} bytes at {offset:,}")
        return data[BLOCK:]

    def _shard(self, row: Mapping[str, Any]) -> str:
        folder = row.get("folder")
        return str(Location.parse(folder) / row["shard"]) if folder else str(row["shard"])

    @staticmethod
    def _bad(row: Mapping[str, Any], reason: str) -> BadSpecimen:
        return BadSpecimen(str(row["key"]), str(row["shard"]), reason)
