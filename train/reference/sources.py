"""What a library is built and extended from: shards, and all formats of `engine.formats.registry` (FASTA, photos, ...).

Both give records (rows of `library.COLUMNS`) with clean barcodes and, with an encoder, features; `Library.build` and
`Library.extend` take them as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from engine.batches.pipeline import load_index
from engine.formats.source import SpecimenSource, names_of, read_all
from engine.signals.barcodes import clean
from engine.specimens.taxonomy import RANKS
from engine.store.members import COLUMNS, Members
from train.reference.features import Encoder

_PHOTOS = 1024  # views held at a time


@dataclass(frozen=True)
class References:
    """M specimens for a library."""

    records: pa.Table
    barcodes: list[str]  # clean, "" = none
    features: dict[str, np.ndarray]  # modality -> float32 [M, D]; {} without an encoder
    skipped: list[tuple[str, str]]  # (key, reason) of every barcode, photo or record that was left out
    names: dict[str, Any]  # what was understood of names, see `engine.formats.source.names_of`


def read_shards(shards: Sequence[str | Path], split: str = "train", encoder: Encoder | None = None) -> References:
    """All specimens of a split of shards; photos are read only where an encoder is given.

    Raises ValueError for folders that are no shards, and where the split is empty.
    """
    index = load_index(list(shards))
    index = index.filter(pc.equal(index["split"], split))
    if not len(index):
        raise ValueError(f"reference library: got split {split!r}, of which these shards have no specimen")
    members, rows = Members(), index.select(["folder", *COLUMNS]).to_pylist()
    listed = tqdm(rows, desc="reading references", unit=" specimens", disable=None, leave=False)
    given = [(members.barcode(row) or "", members.description(row).get("country")) for row in listed]
    records = index.append_column("country", pa.array([place for _, place in given], pa.string()))
    return _gathered(records, [raw for raw, _ in given], lambda row: members.photo(rows[row]), encoder, None)


def read_source(source: SpecimenSource, encoder: Encoder | None = None) -> References:
    """All specimens of a source of `open_dataset`; photos are read only where an encoder is given.

    Raises ValueError as the source does, and where it has no specimen.
    """
    records = read_all(source)
    if not len(records):
        raise ValueError("reference library: got a source without a specimen that can be used")
    photos = records["image"].to_pylist()

    def load(row: int) -> bytes | None:
        return source.load_image(photos[row]) if photos[row] else None

    barcodes = [raw or "" for raw in records["barcode"].to_pylist()]
    return _gathered(records, barcodes, load, encoder, source)


def _gathered(
    records: pa.Table,
    raw: Sequence[str],
    load: Callable[[int], bytes | None],
    encoder: Encoder | None,
    source: SpecimenSource | None,
) -> References:
    """Clean and encode; specimens without barcode and feature are left out."""
    skipped = list(source.skipped) if source else []
    keys = records["key"].to_pylist()
    barcodes, parts = [], []
    for key, sequence in zip(keys, raw, strict=True):
        try:
            barcodes.append(clean(sequence))
        except ValueError as error:
            barcodes.append("")
            skipped.append((key, str(error)))
    kept = np.array([bool(barcode) for barcode in barcodes])
    features: dict[str, np.ndarray] = {}
    if encoder is not None:
        for start in range(0, len(raw), _PHOTOS):
            views: list[np.ndarray | None] = []
            for row in range(start, min(len(raw), start + _PHOTOS)):
                try:
                    photo = load(row)
                    views.append(None if photo is None else encoder.view(photo))
                except (ValueError, OSError) as error:
                    views.append(None)
                    skipped.append((keys[row], str(error)))
            parts.append(encoder.images(views))
        features = {"dna": encoder.dna(barcodes), "image": np.concatenate(parts)}
        kept |= features["image"].any(axis=1)
    chosen = np.flatnonzero(kept)
    return References(
        records.take(pa.array(chosen)),
        [barcodes[row] for row in chosen.tolist()],
        {name: part[chosen] for name, part in features.items()},
        skipped,
        names_of(source, len(records), {rank: len(records) - records[rank].null_count for rank in RANKS}),
    )
