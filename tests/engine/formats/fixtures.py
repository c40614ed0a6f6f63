"""Small data sets in the exact layout of the releases, made by the tests."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import simplejpeg

from engine.formats.bioscan1m import SPLIT_COLUMNS
from engine.formats.registry import open_dataset
from engine.formats.source import read_all
from engine.specimens.schema import SPECIMEN_SCHEMA, SPLITS
from engine.specimens.taxonomy import RANKS

COLUMNS_1M = (
    "sampleid processid uri name phylum class order family subfamily tribe genus species subspecies nucraw "
    "image_file large_diptera_family medium_diptera_family small_diptera_family large_insect_order "
    "medium_insect_order small_insect_order chunk_number copyright_license copyright_holder copyright_institution "
    "copyright_contact photographer author "
)
COLUMNS_5M = (
    "processid sampleid taxon phylum class order family subfamily genus species dna_bin dna_barcode country "
    "province_state coord-lat coord-lon image_measurement_value area_fraction scale_factor inferred_ranks split "
    "index_bioscan_1M_insect chunk "
)
LINEAGES = (
    ("Diptera", "Cecidomyiidae", None, None),
    ("Diptera", "Chironomidae", "Chironomus", "Chironomus plumosus"),
    ("Diptera", "Asteiidae", "Asteia", None),
    ("Hemiptera", "Aphrophoridae", "Philaenus", "Philaenus spumarius"),
    ("Coleoptera", None, None, None),
    ("Hymenoptera", "Formicidae", None, "Formica rufa"),
)
FLY = ("Diptera", "Chironomidae", "Chironomus", "Chironomus plumosus")
CLIBD_GROUPS = (
    "no_split",
    "train_seen",
    "seen_keys",
    "single_species",
    "val_seen",
    "val_unseen",
    "val_unseen_keys",
    "test_seen",
    "test_unseen",
    "test_unseen_keys",
)
CLIBD_UNIONS = {
    "all_keys": ("seen_keys", "val_unseen_keys", "test_unseen_keys"),
    "no_split_and_seen_train": ("no_split", "train_seen"),
}


@dataclasses.dataclass(frozen=True)
class Release:
    """A made release: its root folder, what its metadata says, and each specimen's photo by file name."""

    root: Path
    metadata: Path
    frame: pd.DataFrame
    photos: dict[str, bytes]


def photo(seed: int, size: int = 16) -> bytes:
    """A random JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=80)


def barcode(seed: int, length: int = 40) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def bioscan1m(root: Path, count: int = 24) -> Release:
    """BIOSCAN-1M as its package unpacks it: bioscan1m/ with metadata, CLIBD's partitions, images/cropped_256/part*."""
    base = root / "bioscan1m"
    rows = []
    for n in range(count):
        order, family, genus, species = LINEAGES[n % len(LINEAGES)]
        row: dict[str, object] = dict.fromkeys(COLUMNS_1M.split(), "x")
        row |= {"sampleid": f"BIOUG{n:05d}-A01", "processid": f"GMC{n}-20", "name": order, "class": "Insecta"}
        row |= {"uri": f"BOLD:AAA{n:04d}" if n % 5 else "not_classified", "nucraw": barcode(n, 700 if n == 3 else 40)}
        row |= {"order": order, "family": family or "not_classified", "genus": genus or "not_classified"}
        row |= {"species": species or "not_classified", "tribe": "not_classified"}
        row["subfamily"] = "Testinae" if n % 4 == 1 else "not_classified"
        row |= {"image_file": f"BIOUG{n:05d}-A01.jpg" if n % 2 else f"{5351600 + n}.jpg", "chunk_number": 1 + n % 113}
        row |= {c: ("train", "validation", "test", "no_split")[(n + i) % 4] for i, c in enumerate(SPLIT_COLUMNS)}
        rows.append(row)
    frame = pd.DataFrame(rows)[COLUMNS_1M.split()]
    base.mkdir(parents=True)
    metadata = base / "BIOSCAN_Insect_Dataset_metadata.tsv"
    frame.to_csv(metadata, sep="\t", index=False)
    photos = {name: photo(n) for n, name in enumerate(frame["image_file"])}
    for name, chunk in zip(frame["image_file"], frame["chunk_number"], strict=True):
        _write(base / "images" / "cropped_256" / f"part{chunk}" / name, photos[name])
    partitions(base / "CLIBD_partitioning", list(frame["sampleid"]))
    return Release(root, metadata, frame, photos)


def partitions(folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """CLIBD's twelve files, ids dealt out in turn; return each id's group."""
    groups = {name: list(ids[i :: len(CLIBD_GROUPS)]) for i, name in enumerate(CLIBD_GROUPS)}
    for name, parts in CLIBD_UNIONS.items():
        groups[name] = [one for part in parts for one in groups[part]]
    folder.mkdir(parents=True)
    for name, members in groups.items():
        (folder / f"{name}.txt").write_text("".join(f"{one}\n" for one in members))
    return {one: name for name in CLIBD_GROUPS for one in groups[name]}


def bioscan5m(root: Path, count: int = 32) -> Release:
    """BIOSCAN-5M as its package unpacks it: bioscan5m/metadata/csv/ and images/cropped_256/{split}/[{chunk}/]."""
    base = root / "bioscan5m"
    rows = []
    for n in range(count):
        order, family, genus, species = LINEAGES[n % len(LINEAGES)]
        split, processid = SPLITS[n % len(SPLITS)], f"AACTA{1000 + n}-20"
        digits = {"pretrain": 2, "train": 1, "other_heldout": 1}.get(split, 0)
        row = dict.fromkeys(COLUMNS_5M.split(), "")
        row |= {"processid": processid, "sampleid": f"BIOUG{n}", "taxon": order, "class": "Insecta", "order": order}
        row |= {"family": family or "", "genus": genus or "", "species": species or "", "dna_bin": f"BOLD:AAB{n:04d}"}
        row |= {"dna_barcode": barcode(1000 + n, 700 if n == 3 else 40), "country": "Costa Rica", "split": split}
        row |= {"coord-lat": "10.5" if n % 3 else "", "coord-lon": "-85.25" if n % 3 else "", "inferred_ranks": "0"}
        row["chunk"] = hashlib.md5(processid.encode()).hexdigest()[:digits]
        rows.append(row)
    frame = pd.DataFrame(rows)[COLUMNS_5M.split()]
    metadata = base / "metadata" / "csv" / "BIOSCAN_5M_Insect_Dataset_metadata.csv"
    metadata.parent.mkdir(parents=True)
    frame.to_csv(metadata, index=False)
    photos = {f"{key}.jpg": photo(2000 + n) for n, key in enumerate(frame["processid"])}
    for row in rows:
        folder = base / "images" / "cropped_256" / row["split"] / row["chunk"]
        _write(folder / f"{row['processid']}.jpg", photos[f"{row['processid']}.jpg"])
    return Release(root, metadata, frame, photos)


def zipped(folder: Path, archive: Path, prefix: str, method: int = zipfile.ZIP_STORED) -> Path:
    """All files of a folder as a zip, their paths after `prefix`."""
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.rglob("*")):
            name = f"{prefix}/{path.relative_to(folder)}"
            file.mkdir(name) if path.is_dir() else file.write(path, name)
    return archive


def hdf5_of(photos: dict[str, bytes], path: Path, form: str = "uint8", top: bool = True) -> Path:
    """BIOSCAN-1M's HDF5: a data set per photo, as a row of uint8 or a scalar of bytes."""
    with h5py.File(path, "w") as file:
        group = file.create_group("bioscan_dataset") if top else file
        group.attrs["copyright"] = "x"
        for name, data in photos.items():
            value = {"uint8": np.frombuffer(data, np.uint8), "bytes": np.asarray(data), "void": np.void(data)}[form]
            group.create_dataset(name, data=value)
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def clibd_hdf5(path: Path, groups: dict[str, list[int]], identifier: str = "sampleid") -> dict[str, dict[str, object]]:
    """CLIBD's HDF5: each group holds the specimens of these numbers; return each specimen by its id.

    Specimens with a number divisible by 7 have no photo; names and barcodes are those of `LINEAGES` and `barcode`.
    """
    made: dict[str, dict[str, object]] = {}
    with h5py.File(path, "w") as file:
        for group, numbers in groups.items():
            photos = [b"" if n % 7 == 0 else photo(n) for n in numbers]
            padded = np.zeros((len(numbers), max(map(len, photos), default=0)), dtype=np.uint8)
            for row, data in enumerate(photos):
                padded[row, : len(data)] = np.frombuffer(data, np.uint8)
            columns: dict[str, list[str]] = {"barcode": [barcode(n) for n in numbers]}
            for rank, name in enumerate(("order", "family", "genus", "species")):
                columns[name] = [LINEAGES[n % len(LINEAGES)][rank] or "not_classified" for n in numbers]
            columns[identifier] = [f"id{n}" for n in numbers]
            columns["image_file"] = [f"{n}.jpg" for n in numbers]
            to = file.create_group(group)
            to.create_dataset("image", data=padded)
            to.create_dataset("image_mask", data=np.array(list(map(len, photos)), dtype=np.int64))
            to.create_dataset("language_tokens_input_ids", data=np.zeros((len(numbers), 20), dtype=np.int64))
            for name, cells in columns.items():
                kind = h5py.string_dtype() if name == "barcode" else None  # CLIBD's are fixed, h5py's default is not
                fixed = np.array([cell.encode() for cell in cells], dtype="S")
                to.create_dataset(name, data=cells if kind else fixed, dtype=kind)
            for row, n in enumerate(numbers):
                made[f"id{n}"] = {name: cells[row] for name, cells in columns.items()} | {"photo": photos[row]}
    return made


def read(format_name: str, *paths: Path, **options: Any) -> tuple[pd.DataFrame, Any]:
    source = open_dataset(format_name, list(paths), **options)
    table = read_all(source)
    assert table.schema.equals(SPECIMEN_SCHEMA)
    return table.to_pandas().set_index("key", drop=False), source


def names_of(frame: pd.DataFrame, key: str) -> tuple[str | None, ...]:
    return tuple(None if pd.isna(name) else name for name in frame.loc[key, list(RANKS)])


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
