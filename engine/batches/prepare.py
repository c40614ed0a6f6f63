"""Stored specimens -> model inputs: read, decode, augment, tokenise, hundreds at a time. No Ray, no torch.

Legend: N specimens, n specimens of one call, S image side, L tokens, R ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.config import DataConfig
from engine.signals import barcodes, damage, degrade, images
from engine.specimens import captions
from engine.specimens.schema import DNA_SUFFIX, IMAGE_SUFFIX, rng_for, uniforms_for
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import ShardReader
from engine.store.storage import Location

HEADER = 512  # bytes of a tar header, right before a member's bytes
READ_THROUGH = 32_768  # bytes between two specimens that are read rather than skipped: about what a read call costs
_ROWS_AT_ONCE = 1 << 19  # of a column of strings that becomes an array
SUFFIXES = {"image": IMAGE_SUFFIX, "dna": DNA_SUFFIX}


@dataclass(frozen=True)
class Specimens:
    """What a data task must know of N specimens: plain arrays, shared with every task through the object store."""

    key: np.ndarray  # bytes [N]
    path: tuple[str, ...]  # shard files
    shard: np.ndarray  # int32 [N], into `path`
    image_offset: np.ndarray  # int64 [N]
    image_size: np.ndarray  # int64 [N], 0 = no image
    dna_offset: np.ndarray
    dna_size: np.ndarray
    labels: np.ndarray  # int64 [N, R]
    bin: np.ndarray  # int64 [N], -1 = unknown

    @classmethod
    def from_index(cls, index: pa.Table, taxonomy: Taxonomy) -> "Specimens":
        """Turn columns of `engine.batches.pipeline.load_index` into arrays. No Python object per specimen."""
        path, shard = _shard_numbers(index)
        bins = pc.fill_null(pc.dictionary_encode(index["bin_uri"].combine_chunks()).indices, -1)
        number = {name: index[name].to_numpy() for name in ("image_offset", "image_size", "dna_offset", "dna_size")}
        return cls(
            key=_bytes_array(index["key"]),
            path=path,
            shard=shard,
            labels=taxonomy.encode({rank: index[rank] for rank in RANKS}),
            bin=bins.to_numpy().astype(np.int64),
            **number,
        )


def _shard_numbers(index: pa.Table) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the shard files that occur, and which of them each row is in (int32 [N])."""
    folder, shard = (pc.dictionary_encode(index[name].combine_chunks()) for name in ("folder", "shard"))
    both = folder.indices.to_numpy().astype(np.int64) * max(1, len(shard.dictionary)) + shard.indices.to_numpy()
    used, inverse = np.unique(both, return_inverse=True)
    folders = [Location.parse(name) for name in folder.dictionary.to_pylist()]
    names = shard.dictionary.to_pylist()
    paths = tuple(str(folders[code // len(names)] / names[code % len(names)]) for code in used.tolist())
    return paths, inverse.astype(np.int32)


def _bytes_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return strings as bytes [N] of one width, copied buffer by buffer."""
    width = max(1, pc.max(pc.binary_length(column)).as_py() or 0)
    result = np.zeros((len(column), width), dtype=np.uint8)
    for first in range(0, len(column), _ROWS_AT_ONCE):
        part = pa.chunked_array(column.slice(first, _ROWS_AT_ONCE)).cast(pa.large_binary()).combine_chunks()
        lengths = pc.binary_length(part).to_numpy()
        _, offsets, data = part.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[part.offset : part.offset + len(part) + 1]
        inside = np.arange(width) < lengths[:, None]
        result[first : first + len(part)][inside] = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]]
    return result.view(f"S{width}").reshape(-1)


class MemberReader:
    """Reads photos and barcodes of specimens; neighbours in a shard come in one read."""

    def __init__(self, specimens: Specimens) -> None:
        self.specimens = specimens
        self._shards = ShardReader("/")

    def read(self, rows: np.ndarray) -> tuple[dict[str, list[bytes | None]], list[list[str]]]:
        """Return the bytes of `rows` per member ("image", "dna"), and what could not be read, per row.

        None stands for a member that is not stored or unreadable; [] for a row of which all was read. A read that
        fails is repeated member by member, so that the damage costs no other member.
        """
        members: dict[str, list[bytes | None]] = {name: [None] * len(rows) for name in SUFFIXES}
        problems: list[list[str]] = [[] for _ in rows]
        runs = self._runs(rows)
        self._shards.fetch((path, low, high - low) for path, low, high, _ in runs)
        for path, low, high, wanted in runs:
            try:
                data = self._shards.read(path, low, high - low)
            except (ValueError, OSError):
                data = None
            for i, name, offset, size in wanted:
                key = self.specimens.key[rows[i]].decode()
                try:
                    if data is None:
                        found = _member(self._shards.read(path, offset - HEADER, HEADER + size), 0, size, key, name)
                    else:
                        found = _member(data, offset - HEADER - low, size, key, name)
                    members[name][i] = found
                except (ValueError, OSError) as error:
                    problems[i].append(f"{name} unreadable: {_reason(error)} ({path})")
        return members, problems

    def _runs(self, rows: np.ndarray) -> list[tuple[str, int, int, list[tuple[int, str, int, int]]]]:
        """Return (shard file, first byte, last byte + 1, [(place in rows, member, offset, size)]) of every read."""
        specimens = self.specimens
        offsets = np.stack([specimens.image_offset[rows], specimens.dna_offset[rows]], axis=1)
        sizes = np.stack([specimens.image_size[rows], specimens.dna_size[rows]], axis=1)
        place, member = np.nonzero(offsets >= 0)
        offset, size, shard = offsets[place, member], sizes[place, member], specimens.shard[rows][place]
        order = np.lexsort((offset, shard))
        place, member, offset, size, shard = (values[order] for values in (place, member, offset, size, shard))
        gap = offset[1:] - HEADER - (offset + size)[:-1]
        starts = np.flatnonzero(np.concatenate(([True], (np.diff(shard) != 0) | (gap > READ_THROUGH))))[: len(order)]
        names = tuple(SUFFIXES)
        parts = [
            (i, names[m], o, s)
            for i, m, o, s in zip(*map(np.ndarray.tolist, (place, member, offset, size)), strict=True)
        ]
        runs = []
        for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(parts)], strict=True):
            wanted = parts[first:last]
            high = max(offset + size for _, _, offset, size in wanted)
            runs.append((specimens.path[shard[first]], wanted[0][2] - HEADER, high, wanted))
        return runs


def _member(data: bytes, header: int, size: int, key: str, name: str) -> bytes:
    """Return the bytes of a member whose tar header stands at `header`.

    Raises ValueError when it is not that member's.
    """
    file_name = f"{key}.{SUFFIXES[name]}".encode()
    if data[header : header + len(file_name) + 1] != file_name + b"\0":
        raise ValueError(f"no member {file_name.decode()} where the index has it")
    return data[header + HEADER : header + HEADER + size]


def _reason(error: Exception) -> str:
    return getattr(error, "reason", "") or str(error)


class Prepare:
    """Turns rows of `Specimens` into model inputs as numpy columns. Built once per process.

    Every random choice is drawn from (seed, epoch, specimen key), so the same specimen gets the same augmentation and
    the same damage at any worker count and in any batch. A member that cannot be used is left out and named in the
    column `problem`; a specimen with nothing left is an invalid row, so shapes and steps never change.
    """

    def __init__(self, specimens: Specimens, data: DataConfig, seed: int, *, training: bool) -> None:
        self.specimens, self.data, self.seed, self.training = specimens, data, seed, training
        images.single_thread()  # the tasks of a node share its cores already
        self.tokenizer = barcodes.make_tokenizer(data)
        self.reader = MemberReader(specimens)
        self.side = data.image_size if bool((specimens.image_size > 0).any()) else 0
        self.decode_side = images.decode_side(data.image_size, data.augment) if training else data.image_size

    def __call__(self, rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """Prepare the specimens `rows` (int64 [n]) of one epoch; columns as in `collate.Batch`, and `problem`.

        That is "" or, for what could not be used, "MEMBER WHAT: why", several joined by "; ".
        """
        members, problems = self.reader.read(rows)
        return self.prepare(rows, epoch, members["image"], members["dna"], problems)

    def prepare(
        self,
        rows: np.ndarray,
        epoch: int,
        photos: Sequence[bytes | None],
        raws: Sequence[bytes | None],
        problems: Sequence[list[str]],
    ) -> dict[str, np.ndarray]:
        """Prepare specimens whose bytes were read elsewhere. `problems`: one list per row, added to."""
        keys = self.specimens.key[rows].astype(str)
        names = keys.tolist()
        labels = self.specimens.labels[rows]
        columns = {
            "key": keys,
            "labels": labels,
            "caption": self._captions(labels, names, epoch),
            "bin": self.specimens.bin[rows],
        }
        columns |= self._images(photos, names, epoch, problems)
        columns |= self._barcodes(raws, names, epoch, problems)
        columns["valid"] = columns["has_image"] | columns["has_dna"]
        if self.training and self.data.robust.withheld:
            columns["withheld"] = damage.withheld(names, self.seed, epoch, self.data.robust)
        columns["problem"] = np.array(["; ".join(problem) for problem in problems], dtype=np.str_)
        return columns

    def _captions(self, labels: np.ndarray, keys: list[str], epoch: int) -> np.ndarray:
        if not (self.training and self.data.caption_cut):
            return labels.copy()
        draws = uniforms_for(self.seed, epoch, keys, "caption", 2)
        return captions.cut(labels, draws, self.data.caption_cut)

    def _images(
        self, photos: Sequence[bytes | None], keys: list[str], epoch: int, problems: Sequence[list[str]]
    ) -> dict[str, np.ndarray]:
        """Return two views of each photo, written straight into the columns."""
        count, side, size, augment = len(photos), self.side, self.data.image_size, self.data.augment
        first = np.zeros((count, side, side, 3), dtype=np.uint8)
        second, there = np.zeros_like(first), np.zeros(count, dtype=bool)
        drawn = images.VIEW_DRAWS
        draws = uniforms_for(self.seed, epoch, keys, "views", 2 * drawn).tolist() if self.training else []
        blurred = self.training and self.data.robust.image
        kernels = damage.blur_kernels(keys, self.seed, epoch, self.data.robust) if blurred else []
        for i, photo in enumerate(photos):
            if photo is None:
                continue
            try:
                image = images.decode(photo, self.decode_side)
            except ValueError as error:
                problems[i].append(f"image damaged: {error}")
                continue
            if self.training:
                images.training_view(image, size, draws[i][:drawn], augment, first[i])
                images.training_view(image, size, draws[i][drawn:], augment, second[i])
                for view, kernel in zip((first, second), kernels[i] if blurred else (), strict=False):
                    if kernel:
                        view[i] = degrade.blur(view[i], kernel)
            else:
                first[i] = images.evaluation_view(image, size)
                second[i] = degrade.blur(first[i], self.data.degrade.blur_kernel)
            there[i] = True
        return {"has_image": there, "image": first, "image_view2" if self.training else "image_noisy": second}

    def _barcodes(
        self, raws: Sequence[bytes | None], keys: list[str], epoch: int, problems: Sequence[list[str]]
    ) -> dict[str, np.ndarray]:
        """Return tokens, identity, and (evaluation) the tokens of the damaged form."""
        sequences = [""] * len(raws)
        for i, raw in enumerate(raws):
            if raw is None:
                continue
            try:
                sequences[i] = barcodes.clean(raw.decode("ascii", "replace"))
                if not sequences[i]:
                    problems[i].append("dna empty: no nucleotide but N")
            except ValueError as error:
                problems[i].append(f"dna invalid: {error}")
        if self.data.orient:
            sequences = barcodes.orient_batch(sequences)
        columns = {
            "has_dna": np.array([bool(sequence) for sequence in sequences], dtype=bool),
            "barcode": np.array([_identity(sequence) if sequence else -1 for sequence in sequences], dtype=np.int64),
        }
        if not self.training:
            degraded = damage.measured_barcodes(sequences, keys, self.seed, self.data.degrade, self.data.orient)
            columns["dna_tokens_noisy"] = self.tokenizer.encode(degraded)
        elif self.data.robust.dna:
            sequences = damage.damaged_barcodes(sequences, keys, self.seed, epoch, self.data.robust, self.data.orient)
        columns["dna_tokens"] = self.tokenizer.encode(sequences, self._offsets(keys, epoch))
        return columns

    def _offsets(self, keys: list[str], epoch: int) -> int | np.ndarray:
        """Return where tokenising starts in each barcode: non-overlapping k-mers must learn every reading frame."""
        if not (self.training and self.data.random_offset):
            return 0
        stride = self.data.kmer_stride
        return np.array([rng_for(self.seed, epoch, key, "offset").integers(stride) for key in keys], dtype=np.int64)


def _identity(sequence: str) -> int:
    """Return a number in 0..2^63 - 1 that equal sequences share."""
    return int.from_bytes(hashlib.blake2b(sequence.encode(), digest_size=8).digest(), "big") >> 1
