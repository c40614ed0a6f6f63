"""Photos in folders named after taxa; no barcodes.

One folder per taxon ("Chironomus_plumosus", "Chironomidae"), or nested ones, of which --ranks says what each level is
("order,family,genus,species", "split,species", "-" for a level without meaning). Without --ranks: a first level of
split names is the split; the other levels are the finest ranks, the last one the species if it is of two words or in
lower case below a genus, else by its ending. Taxa are capitalised: "photos" or "musca_domestica" is none, unless
--ranks says so, and a warning counts the photos below such folders. iNaturalist's long names of folders
(00012_Animalia_.._Genus_species) are taken apart. The record id is the path inside the folder.
"""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import FileSource, read_image_file, specimens_of
from engine.formats.delimited import Rows
from engine.formats.split_names import SPLIT_ALIASES
from engine.specimens.schema import SPLITS
from engine.specimens.taxonomy import RANKS

log = logging.getLogger(__name__)

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
LEVELS = (*RANKS, "split", "-")
_INATURALIST = re.compile(r"\d+_[A-Z][a-z]+_[A-Z][a-z]+_[A-Z][a-z]+_([^_]+)_([^_]+)_([^_]+)_(.+)")
_ROWS = 1 << 14


@dataclasses.dataclass
class ImageFoldersSource(FileSource):
    """Photos below one or more folders; see `engine.formats.registry.SpecimenSource`."""

    ranks: tuple[str, ...] | None = None

    def batches(self) -> Iterator[pa.Table]:
        """Look through all folders. Raises ValueError when one has no photo."""
        self.skipped.clear()
        without = 0
        for path in self.paths:
            for specimens, _ in specimens_of(self._read(path), path, self.skipped):
                known = [pc.is_valid(specimens[rank]) for rank in RANKS]
                without += specimens.num_rows - int(pc.sum(functools.reduce(pc.or_, known)).as_py() or 0)
                yield specimens
        if without:
            log.warning("%d photos lie in folders that name no taxon; --ranks says what folders are", without)

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing."""
        return read_image_file(ref)

    def _read(self, root: Path) -> Iterator[Rows]:
        rows: list[dict[str, str]] = []
        others: list[tuple[str, str]] = []
        for place in _files(root):
            key = place if len(self.paths) == 1 else f"{root.name}/{place}"
            *folders, name = place.split("/")
            if not name.lower().endswith(PHOTO_SUFFIXES):
                others.append((key, f"no photo: suffix {Path(name).suffix or 'none'}"))
                continue
            labels = self._labels(folders)
            if labels is None:
                others.append((key, f"depth of folders: {len(folders)}, --ranks names {len(self.ranks or ())}"))
                continue
            rows.append({"key": key, "image": str(root.resolve() / place), **labels})
            if len(rows) == _ROWS:
                yield _as_table(rows), others
                rows, others = [], []
        if rows or others:
            yield _as_table(rows), others

    def _labels(self, folders: list[str]) -> dict[str, str] | None:
        if self.ranks is None:
            return guess_labels(folders)
        if len(folders) != len(self.ranks):
            return None
        labels = {rank: _name(folder) for rank, folder in zip(self.ranks, folders, strict=True) if rank != "-"}
        for rank, name in labels.items():
            if rank in RANKS and (rank != "species" or " " in name):
                labels[rank] = name[:1].upper() + name[1:]
        if "split" in labels:
            labels["split"] = _split_of(labels["split"]) or labels["split"]
        return _with_genus(labels)


def guess_labels(folders: Sequence[str]) -> dict[str, str]:
    """Return the split and the names that nested folders say, from the outermost."""
    labels: dict[str, str] = {}
    if folders and (split := _split_of(folders[0])):
        labels["split"], folders = split, folders[1:]
    if not folders:
        return labels
    if long := _INATURALIST.fullmatch(folders[-1]):
        return labels | dict(zip(RANKS, (*long.groups()[:3], f"{long[3]} {_name(long[4])}"), strict=True))
    names = [_name(folder) for folder in folders]
    if not (names[-1][:1].isupper() or (len(names) > 1 and names[-2][:1].isupper() and " " not in names[-1])):
        return labels
    last = names[-1]
    if " " in last or last[:1].islower():
        finest = "species"
    else:
        finest = "family" if last.endswith("idae") else "order" if last.endswith("ptera") else "genus"
    ranks = RANKS[: RANKS.index(finest) + 1]
    named = dict(zip(reversed(ranks), reversed(names), strict=False))
    above = [rank for rank, name in named.items() if rank != finest and not name[:1].isupper()]  # "photos"
    return _with_genus(labels | {rank: name for rank, name in named.items() if rank not in above})


def _with_genus(labels: dict[str, str]) -> dict[str, str]:
    """Make a binomial of a genus and an epithet, and take an unknown genus from a binomial."""
    species, genus = labels.get("species", ""), labels.get("genus")
    if genus and species and " " not in species:
        return labels | {"species": f"{genus} {species}"}
    if not genus and re.match("[A-Z][a-z-]+ ", species):
        return labels | {"genus": species.partition(" ")[0]}
    return labels


def _split_of(folder: str) -> str | None:
    name = SPLIT_ALIASES.get(folder.lower(), folder.lower())
    return name if name in SPLITS else None


def _name(folder: str) -> str:
    return folder.replace("_", " ").strip()


def _files(root: Path, inside: str = "") -> Iterator[str]:
    """Yield the paths of all files below a folder, in the order of names; hidden ones are left out."""
    with os.scandir(root / inside) as found:
        entries = sorted((entry.name, entry.is_dir()) for entry in found if not entry.name.startswith("."))
    for name, is_folder in entries:
        if is_folder:
            yield from _files(root, f"{inside}{name}/")
        else:
            yield f"{inside}{name}"


def _as_table(rows: list[dict[str, str]]) -> pa.Table:
    fields = ("key", "image", "split", *RANKS)
    return pa.table({field: pa.array([row.get(field) for row in rows], pa.large_string()) for field in fields})


def open_dataset(paths: list[Path], *, ranks: tuple[str, ...] | None = None) -> ImageFoldersSource:
    """Open folders of photos.

    Args:
        paths: folders.
        ranks: what each level of folders is, from the outermost, LEVELS; default: guessed.

    Raises ValueError when a path is no folder or a level is none of LEVELS.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"images: got {path}, which is no folder; allowed: folders of photos")
    for rank in ranks or ():
        if rank not in LEVELS:
            raise ValueError(f"--ranks: got {rank!r}, allowed: {', '.join(LEVELS)}")
    return ImageFoldersSource(paths, ranks=ranks)
