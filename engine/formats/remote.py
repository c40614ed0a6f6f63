"""Sources behind URLs: tables are fetched when the dataset is opened, photos are read where they lie, one by one.

Any format of text or parquet files works: it sees local copies, and what it says of places in them is turned into URLs.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.source import SpecimenSource
from engine.specimens.schema import SPECIMEN_SCHEMA
from engine.store.storage import Location

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".pq", ".fasta", ".fas", ".fa", ".fna", ".gz")
_CHUNK = 1 << 23


class RemoteSource:
    """A source whose files were fetched from one folder of a file system; see `SpecimenSource`."""

    def __init__(self, inner: SpecimenSource, local: str, folder: Location) -> None:
        self.inner, self.local, self.folder = inner, local, folder
        self.url = shown_folder(folder)
        self.skipped = inner.skipped

    def batches(self) -> Iterator[pa.Table]:
        """As the format gives them; references of photos are URLs without options and passwords."""
        place = SPECIMEN_SCHEMA.get_field_index("image")
        try:
            for table in self.inner.batches():
                image = table["image"]
                inside = pc.starts_with(image, self.local)
                url = pc.replace_substring(image, self.local, self.url, max_replacements=1)
                yield table.set_column(place, SPECIMEN_SCHEMA.field("image"), pc.if_else(inside, url, image))
        except ValueError as error:
            raise ValueError(str(error).replace(self.local, self.url)) from None

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when there is none, OSError when the file system fails."""
        if not ref.startswith(self.url):
            return self.inner.load_image(ref)
        try:
            return Location(self.folder.base + ref.removeprefix(self.url), self.folder.query).read_bytes()
        except FileNotFoundError:
            raise ValueError(f"missing image file: {ref}") from None


def shown_folder(folder: Location) -> str:
    """Return A folder's address for people, without its password and its query."""
    return Location(folder.base).shown


def open_remote(paths: Sequence[Location], open_local: Callable[[list[Path]], SpecimenSource]) -> RemoteSource:
    """Fetch files, or all tables of a folder, and open them as `open_local` does.

    Raises ValueError for what is not there, is no text or parquet, or does not lie in one folder.
    """
    files: list[Location] = []
    for path in paths:
        names = [name for name in path.list() if name.lower().endswith(SUFFIXES)] if path.is_dir() else []
        files += [path / name for name in names] or [path]
    for file in files:
        if not file.name.lower().endswith(SUFFIXES) or not file.is_file():
            allowed = f"files of type {', '.join(SUFFIXES)} (zips and HDF5 are read from local disks)"
            raise ValueError(f"URL: got {file.shown}, allowed: {allowed}, or a folder with some")
    if len({str(file.parent) for file in files}) > 1:
        raise ValueError(f"URLs: got {', '.join(file.shown for file in files)}, allowed: files of one folder")
    copies = tempfile.TemporaryDirectory(prefix="taxafuse-")
    folder = Path(copies.name).resolve()
    for file in files:
        with file.open_input() as source, (folder / file.name).open("wb") as target:
            while data := source.read(_CHUNK):
                target.write(data)
    try:
        source = RemoteSource(open_local([folder / file.name for file in files]), str(folder), files[0].parent)
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), shown_folder(files[0].parent))) from None
    _kept.append(copies)
    return source


_kept: list[tempfile.TemporaryDirectory[str]] = []  # copies live as long as the process: sources are read twice
