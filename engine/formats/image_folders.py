"""Photos in folders named after taxa; no barcodes.

A binomial names the species wherever it stands in the path; folders for nights, stations, views and sexes above and
below it name nothing. Families and orders are told by suffix or name, a genus by a capital ("Chironomus", or
"Chironomus/plumosus"). Taxa are capitalised: "photos" or "musca_domestica" is none, unless --ranks says so, and a
warning counts the photos below such folders. A level of split names is the split. iNaturalist's long names of folders
(00012_Animalia_.._Genus_species) are taken apart. The record id is the path below the folder, or below what several
folders share.
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

from engine.formats.columns import FileSource, specimens_of
from engine.formats.delimited import Rows
from engine.formats.photo_files import (
    PHOTO_SUFFIXES,
    RAW_SUFFIXES,
    is_photo,
    read_image_file,
    reference_of,
    shown_name,
)
from engine.formats.split_names import SPLIT_ALIASES
from engine.formats.understood import with_origins
from engine.specimens.known_words import SETTINGS
from engine.specimens.names import is_placeholder, plain, read_name, read_ranks
from engine.specimens.schema import SPLITS
from engine.specimens.taxonomy import RANKS

log = logging.getLogger(__name__)

ANNOTATIONS = (".json", ".xml")  # of COCO, LabelMe, Pascal VOC
LEVELS = (*RANKS, "split", "-")
_INATURALIST = re.compile(r"\d+_[A-Z][a-z]+_[A-Z][a-z]+_[A-Z][a-z]+_([^_]+)_([^_]+)_([^_]+)_(.+)")
_CLOUD = re.compile(r"\.(.+)\.icloud")
_ROWS = 1 << 14

__all__ = ["PHOTO_SUFFIXES", "ImageFoldersSource", "guess_labels", "open_dataset", "photos_below"]


@dataclasses.dataclass
class ImageFoldersSource(FileSource):
    """Photos below one or more folders; see `engine.formats.registry.SpecimenSource`."""

    ranks: tuple[str, ...] | None = None

    def batches(self) -> Iterator[pa.Table]:
        """Look through all folders. Raises ValueError when one has no file."""
        self.start()
        without = 0
        for path in self.paths:
            for specimens, _ in specimens_of(self._read(path), path, self):
                known = [pc.is_valid(specimens[rank]) for rank in RANKS]
                without += specimens.num_rows - int(pc.sum(functools.reduce(pc.or_, known)).as_py() or 0)
                yield specimens
        if without:
            log.warning("%d photos lie in folders that name no taxon; --ranks says what folders are", without)

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing."""
        return read_image_file(ref)

    def _read(self, root: Path) -> Iterator[Rows]:
        above = _place_of(root, self.paths)
        rows: list[dict[str, str]] = []
        others: list[tuple[str, str]] = []
        for place, problem in walk(root):
            key = f"{above}/{shown_name(place)}" if above else shown_name(place)
            *folders, name = key.split("/")
            inside = folders if self.ranks is None else place.split("/")[:-1]
            if problem or not is_photo(root / place, name):
                kind = "raw photo, which is not read" if name.lower().endswith(RAW_SUFFIXES) else "no photo"
                if name.lower().endswith(ANNOTATIONS):
                    kind = "no photo; boxes and labels in it are not read"
                others.append((key, problem or f"{kind}: suffix {Path(name).suffix or 'none'}"))
                continue
            labels = self._labels(inside, root)
            if labels is None:
                others.append((key, f"depth of folders: {len(inside)}, --ranks names {len(self.ranks or ())}"))
                continue
            rows.append({"key": key, "image": reference_of(str(root.resolve() / place)), **labels})
            if len(rows) == _ROWS:
                yield _as_table(rows), others
                rows, others = [], []
        if rows or others:
            yield _as_table(rows), others

    def _labels(self, folders: list[str], root: Path) -> dict[str, str] | None:
        if self.ranks is None:
            labels = guess_labels(folders)
            own = read_name(root.resolve().name, any_case=False) if not labels.keys() & set(RANKS) else {}
            return labels | own if "species" in own else labels  # a species' folder given by itself
        if len(folders) != len(self.ranks):
            return None
        cells = {rank: _name(folder) for rank, folder in zip(self.ranks, folders, strict=True) if rank != "-"}
        split = cells.pop("split", None)
        labels = dict(read_ranks(cells))
        return labels | ({"split": _split_of(split) or split} if split else {})


def _place_of(root: Path, roots: Sequence[Path]) -> str:
    """Return where a folder lies below what all folders share, "" for one folder."""
    if len(roots) == 1:
        return ""
    shared = os.path.commonpath([path.resolve().parent for path in roots])
    return shown_name(os.path.relpath(root.resolve(), shared))


def guess_labels(folders: Sequence[str]) -> dict[str, str]:
    """Return the split and the names that nested folders say, from the outermost."""
    labels: dict[str, str] = {}
    folders = list(folders)
    if split := next((split for folder in folders if (split := _split_of(folder))), None):
        labels["split"] = split
        folders = [folder for folder in folders if not _split_of(folder)]
    found: dict[str, str] = {}
    said_genus = ""
    for folder in folders:
        if long := _INATURALIST.fullmatch(folder):
            found |= dict(zip(RANKS, (*long.groups()[:3], f"{long[3]} {_name(long[4])}"), strict=True))
            continue
        name = _name(folder)
        words = name.split()
        while len(words) > 1 and words[-1].lower() in SETTINGS:  # "Pieris napi dorsal"
            words.pop()
        if not words or is_placeholder(name) or all(word.lower() in SETTINGS for word in words):
            continue
        said = read_name(" ".join(words), any_case=False)
        if said_genus and len(words) == 1 and words[0].islower():
            said = read_ranks({"genus": said_genus, "species": words[0]})
            said = said if said.get("species", "").startswith(f"{said_genus} ") and words[0].isalpha() else {}
        said_genus = said["genus"] if set(said) == {"genus"} else ""
        if "species" not in said and "species" in found:
            said.pop("genus", None)
        found |= said
    return labels | {rank: found[rank] for rank in RANKS if rank in found}


def _split_of(folder: str) -> str | None:
    name = SPLIT_ALIASES.get(folder.lower(), folder.lower())
    return name if name in SPLITS else None


def _name(folder: str) -> str:
    return plain(folder.replace("_", " "))


def photos_below(root: Path) -> Iterator[str]:
    """Yield the paths of all photos below a folder, in the order of names."""
    return (place for place, problem in walk(root) if not problem and is_photo(root / place, place))


def walk(root: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (path of a file below a folder, None or why it cannot be read), in the order of names.

    Hidden files are passed over, but for what a cloud left in place of a photo. A link to a folder is followed unless
    it leads to one that is read anyway.
    """
    top = os.path.realpath(root)
    yield from _walk(root, "", {top}, top)


def _walk(root: Path, inside: str, seen: set[str], top: str) -> Iterator[tuple[str, str | None]]:
    try:
        with os.scandir(root / inside) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield inside.rstrip("/") or ".", f"folder that cannot be read: {error.strerror}"
        return
    for entry in entries:
        place = f"{inside}{entry.name}"
        if entry.name.startswith("."):
            if left := _CLOUD.fullmatch(entry.name):
                yield f"{inside}{left[1]}", "photo left in the cloud: it was never downloaded"
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            yield place, f"link that leads nowhere: {error.strerror}"
            continue
        if not is_folder:
            lost = entry.is_symlink() and not os.path.exists(entry.path)
            yield place, "link that leads nowhere" if lost else None
            continue
        target = os.path.realpath(entry.path)
        if entry.is_symlink() and (
            target in seen or f"{target}/".startswith(f"{top}/") or f"{top}/".startswith(f"{target}/")
        ):
            yield place, "link to a folder that is read anyway"
            continue
        seen.add(target)
        yield from _walk(root, f"{place}/", seen, top)


def _as_table(rows: list[dict[str, str]]) -> pa.Table:
    fields = ("key", "image", "split", *RANKS)
    table = pa.table({field: pa.array([row.get(field) for row in rows], pa.large_string()) for field in fields})
    return with_origins(table, dict.fromkeys(RANKS, "folders"))


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
