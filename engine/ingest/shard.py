"""One shard of an ingest: rows of the plan -> specimens -> a tar, and a small file that says what became of it.

Needs no Ray: `engine.ingest` calls it in tasks or in its own process. The small file (NNNNNN.done in `.ingest/`) is
written after the tar, so where it stands the shard is whole; it holds the shard's index rows and, in its metadata, the
plan's fingerprint, size and checksum of the tar, problems and counts.
"""

import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from engine.ingest.plan import Plan, shard_rows
from engine.ingest.report import ProblemLog
from engine.ingest.screening import BARCODE_REMOVED, IMAGE_REMOVED, SKIPPED, Problem
from engine.signals import barcodes, images
from engine.signals.images import Change
from engine.specimens.schema import INDEX_SCHEMA, SPECIMEN_SCHEMA, Specimen
from engine.specimens.taxonomy import RANKS
from engine.store.limits import MAX_BARCODE_BYTES
from engine.store.shards import shard_name
from engine.store.storage import Location
from engine.store.tars import write_shard

REQUESTS = 16  # to a remote file system at once
_KEY = b"taxafuse"  # of the metadata


def read_done(state: Location, number: int) -> tuple[pa.Table, dict[str, Any]]:
    """Return a shard's index rows, and a dict of what was done.

    Its keys: plan, file (bytes, sha256), problems, missing, images_converted, images_shrunk, barcodes and photos
    (8-byte hashes, as hexadecimal text).
    """
    with pa.ipc.open_stream((state / done_name(number)).read_bytes()) as stream:
        index = stream.read_all()
    return index.replace_schema_metadata(None), json.loads(index.schema.metadata[_KEY])


def done_name(number: int) -> str:
    """Name of the file that says that a shard, numbered from 0, is done."""
    return f"{number:06d}.done"


class ShardWriter:
    """Writes shards of a plan. Made once, called on workers.

    Args:
        state: the folder of the plan; shards go beside it.
        plan: its head.
        load_image: see `engine.formats.registry.SpecimenSource`.
    """

    def __init__(self, state: Location, plan: Plan, load_image: Callable[[str], bytes]) -> None:
        self.state, self.load_image = state, load_image
        self.fingerprint, self.num_shards, self.shards_per_part = (
            plan.fingerprint,
            plan.num_shards,
            plan.shards_per_part,
        )
        self.max_side: int | None = plan.settings["max_side"]

    def unfinished(self) -> list[int]:
        """Numbers of the shards that are not there as this plan wants them."""
        sizes, done = self.state.parent.sizes(), self.state.sizes()
        numbers = range(self.num_shards)
        with ThreadPoolExecutor(1 if self.state.is_local else REQUESTS) as pool:
            is_done = pool.map(lambda number: self._is_done(number, sizes, done), numbers)
            return [number for number, there in zip(numbers, is_done, strict=True) if not there]

    def _is_done(self, number: int, sizes: dict[str, int], done: dict[str, int]) -> bool:
        if done_name(number) not in done:
            return False
        try:
            _, told = read_done(self.state, number)
        except (OSError, pa.ArrowInvalid, KeyError, ValueError):
            return False
        return told["plan"] == self.fingerprint and told["file"]["bytes"] == sizes.get(shard_name(number), 0)

    def write(self, number: int) -> None:
        """Write shard `number` and what became of it; one without any usable specimen leaves no tar.

        Raises OSError when it cannot be written; then nothing of it is visible.
        """
        images.single_thread()  # the tasks of a node share its cores already
        work = _Shard(self.load_image, self.max_side)
        rows = shard_rows(self.state, self.shards_per_part, number)
        written = write_shard(self.state.parent / shard_name(number), work.specimens(rows))
        told = {
            "plan": self.fingerprint,
            "file": {"bytes": written.num_bytes, "sha256": written.sha256},
            "problems": work.problems.to_json(),
            "missing": dict(work.missing),
            "images_converted": work.changed[Change.CONVERTED],
            "images_shrunk": work.changed[Change.SHRUNK],
            "barcodes": b"".join(work.barcodes).hex(),
            "photos": b"".join(work.photos).hex(),
        }
        sink = io.BytesIO()
        schema = INDEX_SCHEMA.with_metadata({_KEY: json.dumps(told).encode()})
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(written.index.replace_schema_metadata(schema.metadata))
        (self.state / done_name(number)).write_atomically(sink.getvalue())


class _Shard:
    """The specimens of one shard, and what is counted while they go by."""

    def __init__(self, load_image: Callable[[str], bytes], max_side: int | None) -> None:
        self.load_image, self.max_side = load_image, max_side
        self.problems = ProblemLog()
        self.changed: Counter[Change] = Counter()
        self.missing: Counter[str] = Counter(image=0, barcode=0, country=0, coordinates=0)
        self.barcodes: list[bytes] = []  # of each stored one 8 bytes that equal ones share
        self.photos: list[bytes] = []

    def specimens(self, rows: pa.RecordBatch) -> Iterator[Specimen]:
        """Return the rows that have a photo or a barcode which can be used, read and checked."""
        columns = [rows.column(name).to_pylist() for name in SPECIMEN_SCHEMA.names]
        for values in zip(*columns, strict=True):
            row = dict(zip(SPECIMEN_SCHEMA.names, values, strict=True))
            image = self._image(row)
            barcode, length = self._barcode(row)
            if image is None and barcode is None:
                self._tell(SKIPPED, row, "neither image nor barcode is usable")
                continue
            self.missing["image"] += image is None
            self.missing["barcode"] += barcode is None
            self.missing["country"] += row["country"] is None
            self.missing["coordinates"] += row["latitude"] is None or row["longitude"] is None
            yield Specimen(
                id=row["key"],
                image=image,
                barcode=barcode,
                barcode_length=length,
                names=tuple(row[rank] for rank in RANKS),
                split=row["split"],
                bin_uri=row["bin_uri"],
                country=row["country"],
                latitude=row["latitude"],
                longitude=row["longitude"],
            )

    def _tell(self, kind: str, row: dict[str, Any], reason: str) -> None:
        self.problems.extend([Problem(kind, row["key"], reason)])

    def _image(self, row: dict[str, Any]) -> bytes | None:
        if row["image"] is None:
            return None
        try:
            data = self.load_image(row["image"])
        except ValueError as error:
            self._tell(IMAGE_REMOVED, row, str(error))
            return None
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            # other OSErrors (a network that fails, too many open files) say nothing about the photo: they stop the run
            self._tell(IMAGE_REMOVED, row, f"image file that cannot be read: {error.strerror} ({row['image']})")
            return None
        try:
            data, change = images.to_jpeg(data, self.max_side)
        except ValueError as error:
            self._tell(IMAGE_REMOVED, row, f"no usable image: {error} ({row['image']})")
            return None
        self.changed[change] += 1
        self.photos.append((zlib.crc32(data) << 32 | len(data) & 0xFFFFFFFF).to_bytes(8, "little"))
        return data

    def _barcode(self, row: dict[str, Any]) -> tuple[str | None, int]:
        """Return the barcode as given, without surrounding whitespace, and the length of the cleaned one."""
        if row["barcode"] is None:
            return None, 0
        if len(row["barcode"]) > MAX_BARCODE_BYTES:
            self._tell(BARCODE_REMOVED, row, f"barcode of more than {MAX_BARCODE_BYTES:,} letters")
            return None, 0
        try:
            cleaned = barcodes.clean(row["barcode"])
        except ValueError as error:
            self._tell(BARCODE_REMOVED, row, f"letters that are no nucleotides: {error}")
            return None, 0
        if not cleaned:
            self._tell(BARCODE_REMOVED, row, "barcode without a known nucleotide")
            return None, 0
        self.barcodes.append(hashlib.blake2b(cleaned.encode(), digest_size=8).digest())
        return row["barcode"].strip(), len(cleaned)
