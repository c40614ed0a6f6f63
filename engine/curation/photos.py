"""Photos that are the same photo: a 128-bit gradient hash finds candidates, their pixels decide.

The hash says of a 9 x 9 grey thumbnail where it gets brighter to the right (64 bits) and downwards (64 bits). Pairs
that differ in at most 7 bits agree in one of eight 16-bit bands, so bands are the buckets that are searched. Found are
copies, other JPEG qualities and sizes, changes of brightness and contrast, grey ones; not mirrored, turned or cropped
ones.

Legend: P photos, H hash bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from engine.curation import Finding, SpecimenSet
from engine.signals import images
from engine.specimens.schema import BadSpecimen
from engine.store.shards import ShardReader

HASH_BYTES = 16
MAX_BITS = 7
MAX_DIFFERENCE = 0.15  # root mean square difference of two thumbnails of contrast 1
_SIDE = 32
_CROWD = 200  # members of a bucket up to which all pairs are compared; beyond, each with its next 200 in order of hash

Photo = tuple[str, int, int]  # shard, offset, bytes


def photo_hash(data: bytes) -> bytes:
    """Return the 16-byte hash of an image file. Raises ValueError when it cannot be decoded."""
    grey = cv2.cvtColor(images.decode(data, _SIDE), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
    right = small[:8, 1:] > small[:8, :8]
    down = small[1:, :8] > small[:8, :8]
    return np.packbits(np.concatenate([right.reshape(-1), down.reshape(-1)])).tobytes()


def hash_photos(directory: str, photos: Sequence[Photo]) -> list[bytes]:
    """Return hashes of stored photos, b"" where one cannot be read or decoded."""
    reader = ShardReader(directory)
    reader.fetch(photos)
    images.single_thread()
    result = []
    for shard, offset, size in photos:
        try:
            result.append(photo_hash(reader.read(shard, offset, size)))
        except (ValueError, BadSpecimen):
            result.append(b"")
    reader.close()
    return result


def thumbnail(data: bytes) -> np.ndarray:
    """Return float32 [32, 32]: the photo in grey, squeezed into a small square, mean 0, standard deviation 1."""
    grey = cv2.cvtColor(images.decode(data, _SIDE), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return (small - small.mean()) / max(float(small.std()), 1.0)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the root mean square difference of two thumbnails.

    0 = the same up to brightness and contrast, 1.4 = unrelated.
    """
    return float(np.sqrt(((one - other) ** 2).mean()))


def likely_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return pairs of rows (first < second) whose hashes differ in at most MAX_BITS bits: int64 [pairs, 2], sorted.

    Args:
        hashes: uint8 [P, 16].
    """
    words = hashes.view(np.uint64)  # [P, 2]
    bands = hashes.view(np.uint16)
    found = [np.empty((0, 2), dtype=np.int64)]
    for band in range(bands.shape[1]):
        order = np.lexsort((words[:, 0], words[:, 1], bands[:, band]))
        key = bands[order, band]
        for step in range(1, _CROWD + 1):
            near = np.flatnonzero(key[step:] == key[:-step])
            if not len(near):
                break
            one, other = order[near], order[near + step]
            bits = np.bitwise_count(words[one] ^ words[other]).sum(axis=1)
            close = bits <= MAX_BITS
            found.append(np.sort(np.stack([one[close], other[close]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def stored_photos(specimens: SpecimenSet) -> tuple[np.ndarray, list[Photo]]:
    """Return rows with a photo, and where it lies."""
    rows = np.flatnonzero(specimens.index["image_offset"].to_numpy() >= 0)
    part = specimens.index.take(pa.array(rows))
    columns = (part[name].to_pylist() for name in ("shard", "image_offset", "image_size"))
    return rows, list(zip(*columns, strict=True))


def check_photos(sets: Sequence[SpecimenSet], hashed: Sequence[Sequence[bytes]]) -> Finding:
    """Report pairs of near-duplicate photos, within and between sets.

    Args:
        sets: the sets of specimens.
        hashed: per set, the hash of each photo in the order of `stored_photos`.
    """
    owners, rows, photos = [], [], []
    for number, specimens in enumerate(sets):
        own_rows, own_photos = stored_photos(specimens)
        owners += [number] * len(own_rows)
        rows += own_rows.tolist()
        photos += own_photos
    codes = [code for part in hashed for code in part]
    good = np.flatnonzero([len(code) == HASH_BYTES for code in codes])
    packed = np.frombuffer(b"".join(codes[i] for i in good.tolist()), dtype=np.uint8).reshape(-1, HASH_BYTES)
    pairs = good[likely_pairs(packed)] if len(good) else np.empty((0, 2), dtype=np.int64)
    readers = [ShardReader(specimens.name) for specimens in sets]
    table = []
    for one, other, apart in _verified(pairs, lambda i: readers[owners[i]].read(*photos[i])):
        pair: dict[str, Any] = {"difference": round(apart, 4)}
        for name, place in (("", one), ("other_", other)):
            row = sets[owners[place]].index.slice(rows[place], 1).to_pylist()[0]
            pair |= {f"{name}set": sets[owners[place]].name}
            pair |= {f"{name}{column}": row[column] for column in ("key", "split", "species")}
        table.append(pair)
    crossing = [row for row in table if (row["set"], row["split"]) != (row["other_set"], row["other_split"])]
    facts = {
        "photos": len(codes),
        "not readable": len(codes) - len(good),
        "candidate pairs": len(pairs),
        "pairs that cross splits or sets": len(crossing),
        "pairs under different species": sum(row["species"] != row["other_species"] for row in table),
    }
    table.sort(key=lambda row: (row not in crossing, row["difference"], row["key"]))
    meaning = (
        "The same photo twice, perhaps resaved. Between splits it is a leak; under two names one of them is wrong. "
        "Mirrored, turned and cropped copies are not found."
    )
    return Finding("photos", "Near-duplicate photos", len(table), "pairs", meaning, pa.Table.from_pylist(table), facts)


def _verified(pairs: np.ndarray, read: Callable[[int], bytes]) -> Iterator[tuple[int, int, float]]:
    """Yield candidates whose pixels agree, with their difference.

    Pairs are sorted, so that a photo is decoded once as the first.
    """
    last, left = -1, np.empty(0)
    for one, other in tqdm(pairs.tolist(), desc="compare photos", unit="pair", disable=None):
        if one != last:
            last, left = one, thumbnail(read(one))
        apart = difference(left, thumbnail(read(other)))
        if apart <= MAX_DIFFERENCE:
            yield one, other, apart
