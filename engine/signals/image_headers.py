"""What the header of an image file says, read without decoding: size, EXIF orientation, where the pixels begin."""

import re
import struct

_EXIF = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([0-9])")
_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101


def file_header(data: bytes) -> tuple[int, int, int]:
    """Width, height and the EXIF orientation still to be applied of a file that is not a JPEG, without decoding it."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            if b"IEND" not in data[-64:]:
                raise ValueError("truncated PNG (no end marker)")
            return *struct.unpack_from(">II", data, 16), _orientation_after(data, b"eXIf", 4)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            if len(data) < struct.unpack_from("<I", data, 4)[0]:
                raise ValueError("truncated WebP")
            return *_webp_size(data), _orientation_after(data, b"EXIF", 8)
        if data[:4] in (b"II*\0", b"MM\0*"):
            tags = tiff_tags(data)
            return tags.get(_TIFF_WIDTH, 0), tags.get(_TIFF_HEIGHT, 0), 1  # OpenCV turns TIFF, and only TIFF, itself
        if data[:2] == b"BM":
            width, height = struct.unpack_from("<ii", data, 18)
            return width, abs(height), 1
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return *struct.unpack_from("<HH", data, 6), 1
    except struct.error:
        raise ValueError("image truncated in its header") from None
    raise ValueError(f"photo: unknown format (starts with {data[:8]!r}), allowed: JPEG, PNG, WebP, TIFF, BMP, GIF")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas of the three kinds of WebP (RFC 9649, section 2)."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _orientation_after(data: bytes, chunk: bytes, skip: int) -> int:
    """Return the orientation in the EXIF chunk of a PNG or WebP; 1 without one."""
    place = data.find(chunk)
    if place < 0:
        return 1
    block = data[place + skip :]
    return tiff_tags(block.removeprefix(b"Exif\0\0")).get(_ORIENTATION, 1)


def jpeg_segments(data: bytes) -> tuple[int, int, bytes | None]:
    """Return (EXIF orientation, offset of the first scan, colour profile) from the segments before the pixels.

    EXIF in several segments is one block; without an orientation in it XMP's counts, as in Pillow.
    """
    exif, xmp, profile, place = b"", b"", b"", 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:
            break
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + size]
        if marker == 0xE1 and segment.startswith(_EXIF):
            exif += segment[len(_EXIF) :]
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/"):
            xmp += segment
        elif marker == 0xE2 and segment.startswith(b"ICC_PROFILE\0"):
            profile += segment[14:]
        place += 2 + size
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    orientation = tiff_tags(exif).get(_ORIENTATION)
    if orientation is None:
        said = _XMP_ORIENTATION.search(xmp)
        orientation = int(said[1]) if said else 1
    return orientation, place, profile or None


def tiff_orientation(data: bytes) -> int:
    """Return the orientation that a TIFF's tags give, 1 without one."""
    return tiff_tags(data).get(_ORIENTATION, 1)


def tiff_tags(block: bytes) -> dict[int, int]:
    """Return the first number of each tag (short or long) of a TIFF's first directory; {} when it is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return {}
    tags = {}
    try:
        (place,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", block, entry)
            if number >= 1 and kind in (3, 4) and number * (2 if kind == 3 else 4) <= 4:
                (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), block, entry + 8)
            elif number > 1 and kind == 3:  # bits per sample, extra samples: of several the first
                (there,) = struct.unpack_from(order + "I", block, entry + 8)
                (tags[tag],) = struct.unpack_from(order + "H", block, there)
    except struct.error:
        return tags
    return tags


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Return a TIFF in whose first directory a tag of one short has another value."""
    order = "<" if data[:2] == b"II" else ">"
    (place,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, place)
    changed = bytearray(data)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, entry)[0] == tag:
            struct.pack_into(order + "H", changed, entry + 8, value)
    return bytes(changed)
