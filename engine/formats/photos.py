"""Where the photos of a BIOSCAN release lie: zips, HDF5 or a folder, found by layout and read in place.

Photos are found by name, never by order. In zips by their file name alone, wherever in the archive it stands: releases
and users put different folders around it.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from engine.formats.hdf5 import Hdf5Images
from engine.formats.photo_files import read_image_file
from engine.formats.zips import ZipMembers
from engine.specimens.schema import SPECIMEN_SCHEMA

log = logging.getLogger(__name__)

HDF5_SUFFIXES = (".hdf5", ".h5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a release lays out its photos.

    packages: names of its image packages, the one that is taken first when several are there first.
    folders: where in the user's folder they may lie.
    inside: matches the name of a folder that a package's folder contains.
    """

    packages: tuple[str, ...]
    folders: tuple[str, ...]
    inside: re.Pattern[str]

    def package_of(self, name: str) -> str | None:
        """Return the package that a file or folder name names: the longest, "cropped" is part of "cropped_256"."""
        return max((package for package in self.packages if package in name), key=len, default=None)


@dataclasses.dataclass
class Photos:
    """Photos of one package: looked up in zips first, then in the HDF5 file, then in the folder."""

    zips: ZipMembers | None = None
    hdf5: Hdf5Images | None = None
    folder: Path | None = None
    is_flat: bool = False  # the folder has no folders of its own

    def refs(self, names: Sequence[str | None], subfolders: Sequence[str]) -> pa.Array:
        """Return references for `load`, null where the name is None.

        Args:
            names: file names.
            subfolders: of each, inside the package's folder, with a "/" at its end, or "".
        """
        known = self.zips.refs([name or "" for name in names]) if self.zips else [None] * len(names)
        refs = [
            None if name is None else f"zip:{member}" if member else self._elsewhere(name, subfolder)
            for name, member, subfolder in zip(names, known, subfolders, strict=True)
        ]
        return pa.array(refs, SPECIMEN_SCHEMA.field("image").type)

    def _elsewhere(self, name: str, subfolder: str) -> str:
        if self.hdf5:
            return f"hdf5:{name}"
        if self.folder:
            return f"file:{self.folder}/{name}" if self.is_flat else f"file:{self.folder}/{subfolder}{name}"
        return f"none:{name}"

    def load(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing or cannot be read."""
        kind, _, rest = ref.partition(":")
        if kind == "zip" and self.zips:
            return self.zips.load(rest)
        if kind == "hdf5" and self.hdf5:
            return self.hdf5.load(rest)
        if kind == "file":
            return read_image_file(rest)
        archives = ", ".join(self.zips.paths) if self.zips else "no archive"
        raise ValueError(f"missing image file: {rest} in {archives}")


def find_photos(paths: list[Path], layout: Layout, package: str | None) -> Photos | None:
    """Find the photos in what the user named: archives are taken as they are, folders are searched by layout.

    Returns None when nothing looks like photos. Raises ValueError for an unknown package, archives of two packages,
    two HDF5 files, or an archive that cannot be read.
    """
    if package is not None and package not in layout.packages:
        raise ValueError(f"--package: got {package!r}, allowed: {', '.join(layout.packages)}")
    given = [path for path in paths if _is_archive(path)]
    packages = {layout.package_of(path.name) for path in given} - {None}
    if len(packages) > 1 and package is None:
        names = ", ".join(path.name for path in given)
        raise ValueError(f"archives: got {names}, which are of {len(packages)} packages; allowed: one, or --package")
    if packages and package is None:
        package = packages.pop()
    roots = [path for path in paths if path.is_dir()]
    for choice in (package,) if package else layout.packages:
        archives = [*given, *(path for root in roots for path in _archives(root, layout, choice))]
        archives = [path for path in archives if layout.package_of(path.name) in (choice, None)]
        folder = next((found for root in roots for found in _folders(root, layout, choice)), None)
        if archives or folder:
            return _open(archives, folder, layout, choice)
    return None


def _open(archives: list[Path], folder: Path | None, layout: Layout, package: str) -> Photos:
    hdf5 = [path for path in archives if path.suffix.lower() in HDF5_SUFFIXES]
    zips = [path for path in archives if path.suffix.lower() == ".zip"]
    if len(hdf5) > 1:
        raise ValueError(f"HDF5 files: got {', '.join(map(str, hdf5))}, allowed: one (--package chooses)")

    def name_of(member: str) -> str | None:
        *above, name = member.split("/")
        other = any(part in layout.packages and part != package for part in above)
        return None if other or name.startswith(".") else name

    found = Photos(
        ZipMembers(zips, name_of) if zips else None,
        Hdf5Images(hdf5[0]) if hdf5 else None,
        folder.resolve() if folder else None,
        folder is not None and not any(map(layout.inside.fullmatch, _folder_names(folder))),
    )
    in_zips = f"{found.zips.num_members} members of {len(zips)} zips" if found.zips else None
    places = [str(place) for place in (in_zips, hdf5[0] if hdf5 else None, folder) if place]
    log.info("photos of package %s: %s", package, ", ".join(places))
    return found


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".zip", *HDF5_SUFFIXES)


def _archives(root: Path, layout: Layout, package: str) -> list[Path]:
    """Return archives in a folder that are named after the package."""
    places = [place for folder in layout.folders if (place := root / folder).is_dir()]
    found = {path.resolve(): path for place in places for path in _files_of(place) if _is_archive(path)}
    return [path for path in found.values() if layout.package_of(path.name) == package]


def _files_of(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.name.lower().endswith((".zip", *HDF5_SUFFIXES)))


def _folders(root: Path, layout: Layout, package: str) -> Iterator[Path]:
    """Folders that may be the package's: by name, or because of what they contain."""
    for folder in layout.folders:
        if (place := root / folder / package).is_dir():
            yield place
    named = layout.package_of(root.name)
    if (named or package) == package and (any(map(layout.inside.fullmatch, _folder_names(root))) or _has_photo(root)):
        yield root


def _folder_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.is_dir())


def _has_photo(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith((".jpg", ".jpeg")) for entry in entries)
