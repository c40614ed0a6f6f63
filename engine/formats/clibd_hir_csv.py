"""CSV files of the CLIBD-HiR release: image_file, taxonomy (a caption), nucraw, and for training integer labels.

The files hold no rank's name, only the caption, the known names in order with spaces between ("Diptera Chironomidae
Chironomus Chironomus plumosus"), and a code per rank, 0 = not classified: in the columns order .. species, or as a list
of four in All_level_label, which is parsed as a literal and never evaluated. A code says that a rank is known, so the
caption's words can be told apart; the name that most captions give a code is the code's. A code without any such name
stands as "family-12", counted in a warning. Without codes the caption is read by the shape of its words.

Photos lie in BIOSCAN-1M's HDF5, by image_file, which is the record id. The file's name gives the split: train,
train_split, val, test.
"""

import ast
import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from engine.formats.bioscan import photos_beside, pick_columns, texts
from engine.formats.bioscan1m import LAYOUT as LAYOUT_1M
from engine.formats.columns import MISSING, FileSource, specimens_of, with_column
from engine.formats.delimited import read_delimited
from engine.formats.photos import Photos
from engine.specimens.taxonomy import RANKS, Names

log = logging.getLogger(__name__)

LAYOUT = dataclasses.replace(LAYOUT_1M, packages=("original_256", *LAYOUT_1M.packages[:1], *LAYOUT_1M.packages[2:]))
FILE_SPLITS = {"train": "train", "train_split": "train", "val": "val", "test": "test"}
ALIASES = {
    "key": ("image_file",),
    "caption": ("taxonomy",),
    "barcode": ("nucraw",),
    "all_labels": ("all_level_label",),
    **{f"code_{rank}": (rank,) for rank in RANKS},
}
Codes = tuple[str | None, ...]  # per rank; None = not classified


def read_caption(caption: str, known: Sequence[bool] | None) -> Names | None:
    """Return the four names in a caption, None when its words do not fit.

    Args:
        caption: names in the order of ranks, unknown ones left out or "not_classified".
        known: which ranks it names; None = told by the words: a family ends in "idae", a genus stands before its
            species once more.
    """
    words = [word for word in caption.split() if word.lower() not in MISSING]
    if known is None:
        named = [bool(words) and not words[0].endswith("idae") and words[:1] != words[1:2]]
        named.append(any(word.endswith("idae") for word in words[: 1 + named[0]]))
        rest = words[sum(named) :]
        known = [*named, bool(rest), len(rest) > 1]
    names: list[str | None] = []
    for is_known in known[:3]:
        names.append(words.pop(0) if is_known and words else None)
        if is_known and names[-1] is None:
            return None
    genus = names[2]
    if known[3]:
        if not words:
            return None
        if genus and words[0] != genus:  # "Chironomus plumosus" is written once
            words = [genus, *words]
        return (*names, " ".join(words))
    return None if words else (*names, None)


@dataclasses.dataclass
class ClibdHirSource(FileSource):
    """Specimens of one or more files; see `engine.formats.registry.SpecimenSource`."""

    photos: Photos | None = None

    def batches(self) -> Iterator[pa.Table]:
        """Read all files, twice: codes get their names first. Raises ValueError when one lacks a column."""
        name_of_code = self._names_of_codes()
        self.start()
        without_name: Counter[str] = Counter()
        for path in self.paths:
            split = FILE_SPLITS.get(path.name.lower().removesuffix(".gz").removesuffix(".csv"))
            for specimens, columns in specimens_of(self._pieces(path), path, self):
                rows = [self._names(*row, name_of_code, without_name) for row in _labels(columns)]
                good = [row is not None for row in rows]
                for rank, names in zip(RANKS, zip(*(row or (None,) * 4 for row in rows), strict=True), strict=False):
                    specimens = with_column(specimens, rank, pa.array(names, pa.string()))
                if self.photos and specimens.num_rows:
                    names = specimens["key"].to_pylist()
                    specimens = with_column(specimens, "image", self.photos.refs(names, [""] * len(names)))
                specimens = with_column(specimens, "split", pa.array([split] * specimens.num_rows, pa.string()))
                bad = specimens["key"].filter(pa.array([not one for one in good], pa.bool_())).to_pylist()
                self.skipped += [(key, "All_level_label that is no list of four integers") for key in bad]
                yield specimens.filter(pa.array(good, pa.bool_()))
        if without_name:
            worst = ", ".join(f"{code} ({count})" for code, count in without_name.most_common(5))
            log.warning(
                "%d labels have no readable name in taxonomy, their codes stand for them: %s",
                without_name.total(),
                worst,
            )

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing or cannot be read."""
        assert self.photos, "a reference is only given where there are photos"
        return self.photos.load(ref)

    def _pieces(self, path: Path) -> Iterator[tuple[pa.Table, list[tuple[str, str]]]]:
        required = ("key", "caption", "barcode")
        return read_delimited(path, lambda names: pick_columns(names, path, ALIASES, required, "clibd-hir-csv"))

    def _names_of_codes(self) -> dict[tuple[int, str], str]:
        """Return the name that most captions give a rank's code."""
        votes: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
        for path in self.paths:
            for columns, _ in self._pieces(path):
                for caption, codes, _ in _labels(columns):
                    names = read_caption(caption or "", [code is not None for code in codes]) if codes else None
                    for rank, (code, name) in enumerate(zip(codes or (), names or (), strict=False)):
                        if code is not None and name is not None:
                            votes[rank, code][name] += 1
        return {code: min(names, key=lambda name: (-names[name], name)) for code, names in votes.items()}

    def _names(
        self,
        caption: str | None,
        codes: Codes | None,
        is_bad: bool,
        name_of_code: dict[tuple[int, str], str],
        without_name: Counter[str],
    ) -> Names | None:
        """Return A row's four names, None when its labels cannot be read."""
        if is_bad:
            return None
        if codes is None:
            return read_caption(caption or "", None) or (None,) * len(RANKS)
        names: list[str | None] = []
        for rank, code in enumerate(codes):
            if code is None or not code.isdigit():
                names.append(code)  # unknown, or a name already
                continue
            name = name_of_code.get((rank, code))
            if name is None:
                name = f"{RANKS[rank]}-{code}"
                without_name[name] += 1
            names.append(name)
        return tuple(names)


def _labels(columns: pa.Table) -> Iterator[tuple[str | None, Codes | None, bool]]:
    """(caption, codes or None where the file has none, whether they cannot be read) of each row."""
    captions = texts(columns, "caption")
    if all(f"code_{rank}" in columns.column_names for rank in RANKS):
        by_rank = [texts(columns, f"code_{rank}") for rank in RANKS]
        for caption, *cells in zip(captions, *by_rank, strict=True):
            yield caption, tuple(_code(cell) for cell in cells), False
    elif "all_labels" in columns.column_names:
        for caption, cell in zip(captions, texts(columns, "all_labels"), strict=True):
            codes = _list_of_codes(cell or "")
            yield caption, codes, codes is None
    else:
        yield from ((caption, None, False) for caption in captions)


def _code(cell: str | None) -> str | None:
    number = (cell or "").removesuffix(".0")
    return (number.lstrip("0") or None) if number.isdigit() else cell


def _list_of_codes(text: str) -> Codes | None:
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(codes, list | tuple) or len(codes) != len(RANKS):
        return None
    if not all(isinstance(code, int) and code >= 0 for code in codes):
        return None
    return tuple(str(int(code)) if code else None for code in codes)


def open_dataset(paths: list[Path], *, package: str | None = None, images: Path | None = None) -> ClibdHirSource:
    """Open CSV files, or those of folders, and the photos beside them.

    Args:
        paths: CSV files or folders, and BIOSCAN-1M's HDF5 (or zip) of photos.
        package: of the images, see `engine.formats.bioscan1m.PACKAGES`; default: the first that is there.
        images: another place to look for photos.

    Raises ValueError when there is no CSV file.
    """
    files = [path for path in paths if path.is_file() and path.name.lower().endswith((".csv", ".csv.gz"))]
    for path in (path for path in paths if path.is_dir()):
        files += sorted(file for file in path.iterdir() if file.name.lower().endswith((".csv", ".csv.gz")))
    if not files:
        raise ValueError(f"clibd-hir-csv: got {', '.join(map(str, paths))} without a CSV file, allowed: one or more")
    return ClibdHirSource(files, photos=photos_beside(paths, images, package, LAYOUT))
