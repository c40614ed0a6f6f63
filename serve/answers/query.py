"""Turn what was sent into what the model reads: decode photos; parse, clean and check a barcode.

One query at a time, in any thread, before it waits for a batch: what is wrong with it concerns it alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import DataConfig
from engine.curation.query import BarcodeCheck, check_barcode
from engine.signals import barcodes, images
from serve.answers.answer import Query, QueryError

MAX_IMAGES = 16  # photos of one specimen
MAX_LETTERS = 20_000  # of a barcode as it was sent; all of COI has about 1,540 nucleotides
MAX_JPEG_PIXELS = 50_000_000  # decoded at an eighth of its sides; a progressive one of this size takes 200 MB
MAX_OTHER_PIXELS = 25_000_000  # decoded whole

PHOTO = (
    f"1..{MAX_IMAGES} photos of one specimen: JPEG of up to {MAX_JPEG_PIXELS:,} pixels; PNG, WebP, TIFF, BMP or GIF of "
    f"up to {MAX_OTHER_PIXELS:,}"
)
BARCODE = (
    f"one COI barcode as text or FASTA, on either strand: A, C, G, T (or U), IUPAC codes, gaps; up to {MAX_LETTERS:,} "
    "letters"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One query as the model reads it."""

    key: str
    views: tuple[np.ndarray, ...]  # uint8 [S, S, 3] each
    dna: str  # clean, on the strand that the model reads; "" = none
    check: BarcodeCheck | None  # None = no barcode


def barcode_of(text: str) -> str:
    """Return the sequence in a text that is one, or in a FASTA text of one record.

    Raises ValueError for more letters than MAX_LETTERS, and for more than one record.
    """
    if len(text) > MAX_LETTERS:
        raise ValueError(f"barcode: got {len(text):,} letters")
    text = text.lstrip("\ufeff \t\r\n")
    if not text.startswith(">"):
        return text
    lines = text.splitlines()
    if count := sum(line.startswith(">") for line in lines[1:]):
        raise ValueError(f"barcode: got a FASTA text of {count + 1} records")
    return "".join(line.strip() for line in lines[1:])


def decode_views(photos: Sequence[bytes], size: int) -> list[np.ndarray]:
    """Return photos as the model sees them, uint8 [size, size, 3] each. Raises ValueError or MemoryError."""
    views = []
    for number, photo in enumerate(photos, 1):
        most = MAX_JPEG_PIXELS if photo[:2] == b"\xff\xd8" else MAX_OTHER_PIXELS
        try:
            views.append(images.evaluation_view(images.decode(photo, size, most), size))
        except (ValueError, MemoryError) as error:
            which = f"photo {number} of {len(photos)}: " if len(photos) > 1 else ""
            raise ValueError(f"{which}{error}") from None
    return views


def prepare(query: Query, data: DataConfig, views: Sequence[np.ndarray] | None = None) -> Prepared | QueryError:
    """Decode, parse, clean and check one query, as evaluation does. Never raises for its content.

    `views`: its photos where they are decoded already, see `decode_views`.
    """
    if not query.images and query.dna is None:
        return QueryError(query.key, "query: got neither photo nor barcode", f"{PHOTO}; or {BARCODE}; or both")
    if len(query.images) > MAX_IMAGES:
        return QueryError(query.key, f"photo: got {len(query.images)} of one specimen", PHOTO)
    try:
        views = decode_views(query.images, data.image_size) if views is None else views
    except ValueError as error:
        return QueryError(query.key, str(error), PHOTO)
    if query.dna is None:
        return Prepared(query.key, tuple(views), "", None)
    try:
        check = check_barcode(barcode_of(query.dna))
    except ValueError as error:
        return QueryError(query.key, str(error), BARCODE)
    as_given = check.strand < 0 and not data.orient
    dna = barcodes.reverse_complement(check.sequence) if as_given else check.sequence
    return Prepared(query.key, tuple(views), dna, check)
