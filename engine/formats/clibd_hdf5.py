"""CLIBD's preprocessed HDF5 files of BIOSCAN-1M and 5M: a group per split, photos padded to one length.

Photos are read in place, by (group, row); `image_mask` holds their lengths, 0 = no photo. Some groups are unions of
others: a specimen is taken from the first group that has it, in the order of GROUPS, and the report counts the other
rows. So seen_keys is `key_unseen` in the file of BIOSCAN-1M, and `train` in that of BIOSCAN-5M, where CLIBD trains on
them too. Rows of no_split_and_seen_train that no single group has are train with a species and pretrain without one,
which is how the two differ.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import FileSource, specimens_of, with_column
from engine.formats.delimited import Rows
from engine.formats.hdf5 import Hdf5File, has_child, names_in, own_child
from engine.formats.lookup import name_hashes
from engine.formats.photos import HDF5_SUFFIXES
from engine.formats.split_names import SPLIT_ALIASES
from engine.specimens.taxonomy import RANKS
from engine.store.limits import MAX_BARCODE_BYTES, MAX_PHOTO_BYTES, MAX_ROWS_BYTES

TRAINING = "no_split_and_seen_train"
GROUPS = (
    "train_seen",
    "no_split",
    TRAINING,
    "val_seen",
    "test_seen",
    "val_unseen",
    "test_unseen",
    "single_species",
    "other_heldout",
    "seen_keys",
    "val_unseen_keys",
    "test_unseen_keys",
    "unseen_keys",
    "all_keys",
)
IDS = ("processid", "sampleid", "image_file")  # the first that a group has
MOST_GROUPS = 1000  # a file of photos has a million members, which are never listed
_ROWS = 1 << 14  # read at once
_LONG_ROWS = 64  # read at once of texts without a fixed length


@dataclasses.dataclass
class ClibdHdf5Source(FileSource):
    """Specimens of one or more files; see `engine.formats.registry.SpecimenSource`."""

    files: list[Hdf5File] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.files = [Hdf5File(path) for path in self.paths]

    def batches(self) -> Iterator[pa.Table]:
        """Read all groups of all files. Raises ValueError when a file is none of CLIBD's."""
        self.start()
        seen = np.empty(0, dtype=np.int64)
        for number, path in enumerate(self.paths):
            groups = _groups(self.files[number].file(), path)
            for name in sorted(groups, key=lambda name: GROUPS.index(name) if name in GROUPS else len(GROUPS)):
                hashes: list[np.ndarray] = []
                repeated = 0
                for specimens, columns in specimens_of(_rows(groups[name], name, number, path), path, self):
                    mine = name_hashes(specimens["key"].to_pylist())
                    new = ~np.isin(mine, seen)
                    hashes.append(mine[new])
                    repeated += len(new) - int(new.sum())
                    specimens = with_column(specimens, "image", columns["ref"])
                    specimens = with_column(specimens, "split", _split(specimens, name))
                    yield specimens.filter(pa.array(new))
                seen = np.unique(np.concatenate([seen, *hashes]))
                if repeated:
                    where = f"{path.name} group {name}"
                    self.skipped.append((where, f"specimens already taken from another group: {repeated}"))

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing or cannot be read."""
        number, row, length, group = ref.split(":", 3)
        file = self.files[int(number)]
        where = f"row {row} of {group} in {file.path}"
        if int(length) <= 0:
            raise ValueError(f"missing image file: length 0 ({where})")
        if int(length) > MAX_PHOTO_BYTES:
            raise ValueError(f"image file cannot be read: {int(length):,} bytes, at most {MAX_PHOTO_BYTES:,} ({where})")
        try:
            data = file.member(f"{group}/image")[int(row), : int(length)]
        except (OSError, KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
            raise ValueError(f"image file cannot be read: {str(error).splitlines()[0]} ({where})") from None
        if len(data) != int(length):
            raise ValueError(f"image file cannot be read: {len(data)} bytes of {length} ({where})")
        return np.asarray(data, dtype=np.uint8).tobytes()


def _groups(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return the groups that hold specimens, by name."""
    names = names_in(file, MOST_GROUPS)
    groups = groups_with_barcodes(file, names)
    groups = {name: group for name, group in groups.items() if any(has_child(group, field) for field in IDS)}
    if not groups:
        raise ValueError(
            f"clibd-hdf5: got {path} with {', '.join(names[:20]) or 'no members, or too many'} at the top; "
            f"allowed: groups named after splits, with barcode and one of {', '.join(IDS)}"
        )
    return groups


def groups_with_barcodes(file: h5py.File, names: Iterable[str]) -> dict[str, h5py.Group]:
    """Return the groups among some members of a file that have barcodes; what lies in another file is none."""
    found = {}
    for name in names:
        try:
            child = own_child(file, name)
            if isinstance(child, h5py.Group) and has_child(child, "barcode"):
                found[name] = child
        except (KeyError, ValueError):
            continue
    return found


def _rows(group: h5py.Group, name: str, number: int, path: Path) -> Iterator[Rows]:
    """Read a group's text and photo lengths, some rows at a time."""
    key = next(field for field in IDS if has_child(group, field))
    fields = {"key": key, "barcode": "barcode", **{rank: rank for rank in RANKS if has_child(group, rank)}}
    has_photos = has_child(group, "image")
    try:
        texts = {field: own_child(group, source) for field, source in fields.items()}
        photos = [own_child(group, source) for source in ("image", "image_mask")] if has_photos else []
        num_rows = {len(one) for one in (*texts.values(), *photos)}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"clibd-hdf5: {path} group {name}: {error}") from None
    if len(num_rows) > 1:
        raise ValueError(f"clibd-hdf5: {path} group {name} has data sets of {sorted(num_rows)} rows, allowed: one size")
    step = max(1, min(_ROWS, MAX_ROWS_BYTES // max(one.dtype.itemsize for one in texts.values())))
    for start in range(0, num_rows.pop(), step):
        part = slice(start, start + step)
        try:
            columns = {field: _text(values, part) for field, values in texts.items()}
            lengths = photos[1][part].tolist() if has_photos else [None] * len(columns["key"])
        except (ValueError, OSError, RuntimeError, TypeError, MemoryError) as error:
            raise ValueError(f"clibd-hdf5: {path} group {name}: {str(error).splitlines()[0]}") from None
        refs = [
            f"{number}:{start + row}:{size}:{name}" if size is not None else None for row, size in enumerate(lengths)
        ]
        yield pa.table({**columns, "ref": pa.array(refs, pa.large_string())}), []


def _text(values: h5py.Dataset, part: slice) -> pa.Array:
    """Return some rows as text; those of no fixed length are read a few at a time, since they may share one long one.

    Raises ValueError for a text that is longer than a barcode may be.
    """
    step = _LONG_ROWS if values.dtype.hasobject else _ROWS
    decoded: list[str] = []
    for start in range(part.start, min(part.stop, len(values)), step):
        cells = values[start : min(start + step, part.stop)].tolist()
        if any(len(one) > MAX_BARCODE_BYTES for one in cells if isinstance(one, bytes | str)):
            raise ValueError(f"a text of more than {MAX_BARCODE_BYTES:,} bytes after row {start}")
        decoded += [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in cells]
    return pa.array(decoded, pa.large_string())


def _split(specimens: pa.Table, group: str) -> pa.ChunkedArray:
    if group == TRAINING:
        return pc.if_else(pc.is_valid(specimens["species"]), "train", "pretrain")
    return pa.array([SPLIT_ALIASES.get(group, group)] * specimens.num_rows, pa.string())


def open_dataset(paths: list[Path]) -> ClibdHdf5Source:
    """Open CLIBD's HDF5 files, or those of a folder. Raises ValueError when there is none."""
    files: list[Path] = []
    for path in paths:
        inside = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix.lower() in HDF5_SUFFIXES)
        if not inside:
            raise ValueError(f"clibd-hdf5: got folder {path} without such files, allowed: {', '.join(HDF5_SUFFIXES)}")
        files += inside
    return ClibdHdf5Source(files)
