"""What decoding a photo would cost, read from its structure before a decoder sees it.

A decoder does what the whole file says, not what its first bytes promise: a later TIFF entry replaces the size, every
scan of a progressive JPEG is a pass over all pixels. Both are read here as the decoder would read them.
"""

import math
import re
import struct
from collections.abc import Sequence

from engine.signals.image_headers import file_header
from engine.store.limits import MAX_JPEG_SCANS, MAX_PAGE_PIXELS, MAX_SCAN_PIXELS

HEAVY = 20_000_000  # scans times pixels beyond which a photo waits with other heavy ones
FORMATS = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "GIF": (b"GIF8",),
}
"""How files begin."""
_INFLATED = 3  # what a pixel of an inflated file costs, in pixels of a JPEG
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}
_SIZES = {0x0100: "width", 0x0101: "height", 0x0115: "samples", 0x0142: "tile width", 0x0143: "tile height"}
_MAX_ENTRIES, _MAX_PAGES, _MAX_SAMPLES = 512, 1000, 16
_MAX_SEGMENTS = 4096
_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xda-\xfe]")  # a marker that has a length: no data, restart or fill byte
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF markers


def check_format(photo: bytes, allowed: Sequence[str]) -> None:
    """Raise ValueError for a photo of one of the FORMATS that is none of the `allowed`."""
    found = next((name for name, starts in FORMATS.items() if photo.startswith(starts)), None)
    if found is not None and found not in allowed:  # of another file the decoder says what it begins with
        raise ValueError(f"photo: got {found}, allowed here: {', '.join(allowed)}")


def cost(photo: bytes) -> int:
    """Return scans times pixels of a JPEG; of another file its pixels, and 8 times its bytes, as a rough equal.

    Raises ValueError for a photo whose structure asks its decoder for more than a photo can need.
    """
    if photo[:2] == b"\xff\xd8":
        return _jpeg_cost(photo)
    order = _TIFF.get(photo[:4])
    if order:
        _check_tiff(photo, order)
    elif photo[:4] in (b"II+\0", b"MM\0+"):
        raise ValueError("photo: got a BigTIFF, allowed: a plain TIFF")
    try:
        width, height, _ = file_header(photo)
    except ValueError:  # the decoder says what is wrong with it
        return 8 * len(photo)
    may_move = photo[:4] in (b"GIF8", b"RIFF") or order is not None
    return 8 * len(photo) + _INFLATED * width * height * (4 if may_move else 1)


def _jpeg_cost(photo: bytes) -> int:
    scans, pixels, place = 0, 0, 2
    for _ in range(_MAX_SEGMENTS):
        found = _SEGMENT.search(photo, place)
        if found is None or found.end() + 7 > len(photo):
            return scans * pixels
        place, marker = found.end(), photo[found.end() - 1]
        if marker in _FRAMES:
            if pixels:
                raise ValueError("photo: got a JPEG of two frames, allowed: one")
            height, width = struct.unpack_from(">HH", photo, place + 3)
            pixels = height * width
        elif marker == 0xDA:
            scans += 1
            if scans > MAX_JPEG_SCANS or scans * pixels > MAX_SCAN_PIXELS:
                raise ValueError(
                    f"photo: got a JPEG of {scans} scans or more over {pixels:,} pixels, allowed at most "
                    f"{MAX_JPEG_SCANS} scans, and {MAX_SCAN_PIXELS:,} pixels in all scans together"
                )
        place += max(2, int.from_bytes(photo[place : place + 2], "big"))  # what a segment holds is no marker
    raise ValueError(f"photo: got a JPEG of more than {_MAX_SEGMENTS} segments, allowed: up to that")


def _check_tiff(photo: bytes, order: str) -> None:
    """Raise ValueError unless each page of a TIFF says its sizes once, as one number each, and all are no bomb."""
    places: list[int] = []
    try:
        (place,) = struct.unpack_from(order + "I", photo, 4)
        while place:
            if place in places or len(places) == _MAX_PAGES:
                raise ValueError(f"photo: got a TIFF of more than {_MAX_PAGES} pages, or whose pages form a ring")
            places.append(place)
            place = _check_page(photo, order, place)
    except struct.error:
        raise ValueError("photo: truncated TIFF directory") from None


def _check_page(photo: bytes, order: str, place: int) -> int:
    """Check one page's directory; return the place of the next page, 0 = there is none. Raises struct.error, too."""
    (count,) = struct.unpack_from(order + "H", photo, place)
    if count > _MAX_ENTRIES:
        raise ValueError(f"photo: got a TIFF of {count} entries, allowed at most {_MAX_ENTRIES}")
    seen: dict[int, int] = {}
    end = place + 2 + 12 * count
    for entry in range(place + 2, end, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", photo, entry)
        if tag not in _SIZES:
            continue
        if tag in seen or number != 1 or kind not in (3, 4):
            raise ValueError(f"photo: got a TIFF whose {_SIZES[tag]} is not one number, allowed: one")
        (seen[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), photo, entry + 8)
    samples = seen.get(0x0115, 1)
    if samples > _MAX_SAMPLES:
        raise ValueError(f"photo: got a TIFF of {samples} samples a pixel, allowed: up to {_MAX_SAMPLES}")
    for sides in ((0x0100, 0x0101), (0x0142, 0x0143)):
        if math.prod(seen.get(side, 1) for side in sides) * max(1, samples / 4) > MAX_PAGE_PIXELS:
            raise ValueError(f"photo: got a TIFF with a page or tile of more than {MAX_PAGE_PIXELS:,} pixels")
    return int(struct.unpack_from(order + "I", photo, end)[0]) if end + 4 <= len(photo) else 0
