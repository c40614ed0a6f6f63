"""Image files by the paths that tables write: another computer's, another case, letters composed otherwise."""

import functools
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from engine.store.limits import MAX_PATH_LETTERS
from engine.store.storage import open_regular, read_regular

PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    ".jpg_large",
)
RAW_SUFFIXES = (".nef", ".cr2", ".cr3", ".dng", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_ENCODED = "file-bytes:"
_DRIVE = re.compile(r"(?:^|/)[A-Za-z]:/")
_ADDRESS = re.compile(r"(https?|ftp|s3)://", re.IGNORECASE)


def is_photo(path: bytes | str | os.PathLike[str], name: str) -> bool:
    """Return whether a file is a photo: by its suffix, else by its first bytes (raw files are none)."""
    lower = name.lower().strip()
    if lower.endswith(PHOTO_SUFFIXES):
        return True
    if lower.endswith(RAW_SUFFIXES):
        return False
    try:
        with open_regular(os.fsdecode(path)) as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_MAGIC[:-1]) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def reference_of(path: str) -> str:
    """Return a reference for `read_image_file` of a path whose name may be no UTF-8."""
    data = os.fsencode(path)
    try:
        data.decode()
    except UnicodeDecodeError:
        return _ENCODED + quote_from_bytes(data)
    return path


def shown_name(name: str) -> str:
    """Return a file's name for people: bytes that are no UTF-8 as Latin-1."""
    data = os.fsencode(name)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_image_file(reference: str) -> bytes:
    r"""Return the bytes of an image file.

    A file that is not there is looked for with "\\" as "/", without a Windows drive, with other capitals and with
    letters composed otherwise. Raises ValueError when there is none.
    """
    if found := _ADDRESS.search(reference):
        raise ValueError(f"web address, which is not fetched: {reference[found.start() :]}")
    if len(reference) > MAX_PATH_LETTERS:
        raise ValueError(f"missing image file: path of {len(reference):,} letters ({reference[:100]}...)")
    path = unquote_to_bytes(reference.removeprefix(_ENCODED)) if reference.startswith(_ENCODED) else reference
    try:
        return read_regular(os.fsdecode(path))
    except FileNotFoundError:
        other = find_file(reference)
    except OSError as error:
        raise ValueError(f"image file cannot be read ({error.strerror}): {reference}") from None
    if other is None:
        raise ValueError(f"missing image file: {reference}")
    try:
        return read_regular(other)
    except OSError as error:
        raise ValueError(f"image file cannot be read ({error.strerror}): {reference}") from None


def find_file(reference: str) -> Path | None:
    """Return the one file that a path means though it does not spell it, None where there is none."""
    plain = reference.replace("\\", "/")
    if drive := _DRIVE.search(plain):
        folder, inside = plain[: drive.start()] or "/", plain[drive.end() :].split("/")
        tails = [inside[at:] for at in range(len(inside))]
        return next((found for tail in tails if (found := _walk(Path(folder), tail))), None)
    path = Path(plain)
    for parent in path.parents:
        if parent.is_dir():
            return _walk(parent, path.relative_to(parent).parts)
    return None


def _walk(folder: Path, parts: tuple[str, ...] | list[str]) -> Path | None:
    for part in parts:
        name = part if (folder / part).exists() else _names_in(str(folder)).get(_alike(part))
        if name is None:
            return None
        folder = folder / name
    return folder if folder.is_file() else None


@functools.lru_cache(maxsize=256)
def _names_in(folder: str) -> dict[str, str]:
    try:
        return {_alike(name): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()
