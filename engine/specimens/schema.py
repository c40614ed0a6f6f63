"""What a specimen is: its columns before ingest, its row in the index, its tar suffixes, and its randomness."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.specimens.taxonomy import RANKS

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
        pa.field("group", pa.string()),  # specimens of one group stay in one split, null = of none
    ]
)
"""Columns of SpecimenSource.batches(): one row per specimen, no image bytes."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),  # the tar key, see `engine.store.shards.tar_key`
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
    digest = _digest(seed, epoch, key, stream)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def uniforms_for(seed: int, epoch: int, keys: Sequence[str], stream: str, count: int) -> np.ndarray:
    """Return float64 [N, count] in [0, 1), about five times as fast as one specimen at a time.

    Row by row they are the numbers of `rng_for(seed, epoch, key, stream).random(count)`. Philox is a
    counter-based generator: block n of a stream is a hash of n (Salmon et al., 2011), so the blocks of all specimens
    are computed side by side.
    """
    digests = b"".join([_digest(seed, epoch, key, stream) for key in keys])
    words = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    num_blocks = -(-count // 4)
    counter = np.tile(np.arange(1, num_blocks + 1, dtype=np.uint64), (len(words), 1))
    zero = np.zeros_like(counter)
    bits = np.stack(_philox((counter, zero, zero, zero), (words[:, :1], words[:, 1:])), axis=-1)
    return (bits.reshape(len(words), 4 * num_blocks)[:, :count] >> np.uint64(11)) * 2.0**-53


def _digest(seed: int, epoch: int, key: str, stream: str) -> bytes:
    """Return 128 bits that stand for the arguments."""
    return hashlib.blake2b(f"{seed}\0{epoch}\0{stream}\0{key}".encode(), digest_size=16).digest()


_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))  # Philox 4x64, as in numpy
_WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
_Words = tuple[np.ndarray, ...]


def _philox(counter: _Words, key: _Words) -> _Words:
    """Run Philox 4x64 with 10 rounds: four words of counter and two of key (uint64, broadcast) -> four random words."""
    a, b, c, d = counter
    first, second = key
    for _ in range(10):
        (high_a, low_a), (high_c, low_c) = _multiply(_MULTIPLIERS[0], a), _multiply(_MULTIPLIERS[1], c)
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
        first, second = first + _WEYL[0], second + _WEYL[1]  # arrays wrap around at 2^64
    return a, b, c, d


def _multiply(factor: np.uint64, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper and the lower 64 bits of the product, by halves of 32 bits."""
    upper, lower = factor >> _HALF, factor & _LOW
    words_upper, words_lower = words >> _HALF, words & _LOW
    middle_one, middle_two = upper * words_lower, lower * words_upper
    carry = ((lower * words_lower) >> _HALF) + (middle_one & _LOW) + (middle_two & _LOW)
    high = upper * words_upper + (middle_one >> _HALF) + (middle_two >> _HALF) + (carry >> _HALF)
    return high, words * factor
