"""What a specimen is: its columns before ingest, its row in the index, its tar suffixes, and its randomness."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa

from engine.taxonomy import RANKS

SPLITS = ("pretrain", "train", "val", "test", "key_unseen", "val_unseen", "test_unseen", "other_heldout")
"""Split names, as in the bioscan-dataset package."""

IMAGE_SUFFIX = "jpg"
DNA_SUFFIX = "dna"
META_SUFFIX = "json"

_RANK_FIELDS = [pa.field(rank, pa.string()) for rank in RANKS]

SPECIMEN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),  # the source's own identifier, any characters
        pa.field("image", pa.large_string()),  # reference for SpecimenSource.load_image, or null
        pa.field("barcode", pa.large_string()),  # as the source has it, or null
        *_RANK_FIELDS,  # null = unknown
        pa.field("split", pa.string()),  # one of SPLITS, or null = not assigned yet
        pa.field("bin_uri", pa.string()),
        pa.field("country", pa.string()),
        pa.field("latitude", pa.float64()),  # degrees, null = unknown
        pa.field("longitude", pa.float64()),
    ]
)
"""Columns of SpecimenSource.batches(): one row per specimen, no image bytes."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),  # the tar key, see `engine.shards.tar_key`
        pa.field("shard", pa.string()),  # file name inside the folder
        pa.field("offset", pa.int64()),  # of the specimen's first tar header, bytes
        pa.field("size", pa.int64()),  # bytes up to the next specimen's first header
        pa.field("image_offset", pa.int64()),  # of the JPEG inside the tar; -1 = no image
        pa.field("image_size", pa.int64()),  # 0 = no image
        pa.field("dna_offset", pa.int64()),  # of the barcode inside the tar; -1 = no barcode
        pa.field("dna_size", pa.int64()),  # 0 = no barcode
        *_RANK_FIELDS,
        pa.field("bin_uri", pa.string()),
        pa.field("split", pa.string()),
        pa.field("barcode_length", pa.int64()),  # nucleotides of the cleaned barcode, 0 = no barcode
    ]
)
"""Columns of index.parquet: one row per stored specimen, in stored order (shard, offset)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specimen:
    """One specimen as it is written into a shard. At least one of image and barcode is there."""

    id: str  # the source's identifier
    image: bytes | None  # JPEG
    barcode: str | None  # as given, without surrounding whitespace
    barcode_length: int  # of the cleaned barcode, 0 without one
    names: tuple[str | None, ...]  # per rank, None = unknown
    split: str
    bin_uri: str | None = None
    country: str | None = None
    latitude: float | None = None  # degrees
    longitude: float | None = None


class BadSpecimen(ValueError):
    """A stored or incoming specimen cannot be used; says which one, where, and why."""

    def __init__(self, key: str, shard: str, reason: str) -> None:
        super().__init__(key, shard, reason)  # the arguments, so that it survives pickling
        self.key = key
        self.shard = shard
        self.reason = reason

    def __str__(self) -> str:
        return f"specimen {self.key!r} in {self.shard or 'the source'}: {self.reason}"


def rng_for(seed: int, epoch: int, key: str, stream: str) -> np.random.Generator:
    """Return the random generator of one specimen (or of one plan) for one purpose.

    A pure function of its arguments: the same specimen gets the same numbers on any worker, in any batch. `stream`
    names the purpose ("view1", "degrade"), so that two purposes never share numbers. Costs about 10 microseconds:
    Philox takes its 128-bit key as it is, where other bit generators stretch a seed first.

    Args:
        seed: of the run.
        epoch: 0 where the randomness must not change between epochs.
        key: of the specimen, "" for none.
        stream: purpose, without NUL characters.
    """
    parts = f"{seed}\0{epoch}\0{stream}\0{key}".encode()
    digest = hashlib.blake2b(parts, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
