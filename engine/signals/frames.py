"""Photos of several frames or pages, and TIFFs of which OpenCV's reader does not do what their tags say.

Of several pages the largest are looked at, and of these the one with most detail is taken: not the preview, nor the
empty end of a focus stack.
"""

import io

import cv2
import numpy as np
from PIL import Image

from engine.signals.colour import from_gamma, lab_to_srgb, to_srgb
from engine.signals.image_headers import tiff_tags, with_tag

_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT = 258, 262, 277, 338, 339
_WHITE_IS_ZERO, _RGB, _CMYK, _LABS = 0, 2, 5, (8, 9)
_MOST_FRAMES = 64  # of a moving picture that are looked at


def num_frames(data: bytes) -> int:
    """Return how many frames or pages a file has; 1 where that cannot be found out."""
    if data[:2] == b"\xff\xd8":
        return 1
    try:
        with Image.open(io.BytesIO(data)) as photo:
            return int(getattr(photo, "n_frames", 1))
    except Exception:  # Pillow raises many kinds for a damaged file
        return _num_pages(data)


def _num_pages(data: bytes) -> int:
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    return max(1, cv2.imcount_from_buffer(data)) if hasattr(cv2, "imcount_from_buffer") else 1


def richest_frame(data: bytes) -> np.ndarray | None:
    """Return the frame with most detail among the largest, uint8 [H, W, 3] RGB; None for a file of one frame."""
    if num_frames(data) < 2:
        return None
    try:
        with Image.open(io.BytesIO(data)) as photo:
            sizes = []
            for number in range(min(getattr(photo, "n_frames", 1), _MOST_FRAMES)):
                photo.seek(number)
                sizes.append(photo.size[0] * photo.size[1])
            best, most = None, -1.0
            for number in (number for number, size in enumerate(sizes) if size == max(sizes)):
                photo.seek(number)
                frame = _over_white(photo)
                detail = float(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())
                if detail > most:
                    best, most = frame, detail
            return best
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"damaged image of several frames ({error})") from None


def _over_white(photo: Image.Image) -> np.ndarray:
    if photo.mode.startswith(("I;16", "I", "F")):
        return np.repeat(_to_bytes(np.asarray(photo))[..., None], 3, axis=2)
    whole = photo.convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    return np.asarray(Image.alpha_composite(white, whole).convert("RGB"))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """Return numbers of 16 bits as 8: by the bits that are in use, 10, 12, 14 or 16 (microscope cameras)."""
    if image.dtype == np.uint8:
        return image
    top = max(int(image.max(initial=0)), 1)
    bits = next(bits for bits in (8, 10, 12, 14, 16, 32) if top < 1 << bits)
    whole = (1 << max(bits, 10 if bits > 8 else 8)) - 1 if bits < 32 else top
    return np.rint(image.astype(np.float32) * (255 / whole)).astype(np.uint8)


def decode_tiff(data: bytes) -> np.ndarray | None:
    """Return a TIFF's photo as its tags say, RGB; None for the kinds that OpenCV reads right.

    Those handled here: Lab, extra bands (the first three are taken), CMYK of 16 bits, grey of 16 bits with white as 0,
    and 16 bits of which fewer are in use.
    """
    tags = tiff_tags(data)
    photometric, samples = tags.get(_PHOTOMETRIC, -1), tags.get(_SAMPLES, 1)
    bits, extra = tags.get(_BITS, 8), tags.get(_EXTRA, 0)
    if tags.get(_FORMAT, 1) == 3:
        return None
    if photometric in _LABS:
        return _decode_lab(data)
    if photometric == _RGB and samples > 3 and extra not in (1, 2):
        bands = _raw(data)
        if bands is None or bands.ndim != 3:
            return _by_pillow(data)
        return np.ascontiguousarray(_to_bytes(bands)[..., 2::-1])
    if photometric == _CMYK and bits == 16:
        return _by_pillow(data)
    if bits == 16 and samples in (1, 3):
        image = _raw(data)
        if image is None or image.dtype != np.uint16:
            return None
        levels = _to_bytes(np.uint16(65535) - image if photometric == _WHITE_IS_ZERO else image)
        return cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB if levels.ndim == 2 else cv2.COLOR_BGR2RGB)
    return None


def _decode_lab(data: bytes) -> np.ndarray | None:
    """Return a Lab photo; its numbers are read as if they were RGB.

    Programs write a and b signed or from the middle of the range: the reading with less colour is a photo's.
    """
    image = _raw(with_tag(data, _PHOTOMETRIC, _RGB))
    if image is None or image.ndim != 3:
        return None
    whole, signed, step = (65535, np.int16, 256) if image.dtype == np.uint16 else (255, np.int8, 1)
    stored = image[..., 2::-1]
    colours = stored[..., 1:]
    scale = np.float32(1 / step)  # a power of two: exact
    readings = colours.view(signed).astype(np.float32) * scale, colours.astype(np.float32) * scale - 128
    chroma = min(readings, key=lambda reading: float(np.abs(reading).mean()))
    return lab_to_srgb(np.concatenate([stored[..., :1].astype(np.float32) * (100 / whole), chroma], axis=-1))


def _raw(data: bytes) -> np.ndarray | None:
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _by_pillow(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as photo:
            return np.asarray(photo.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"TIFF of a kind that is not read ({error})") from None


def with_stored_colours(image: np.ndarray, data: bytes) -> np.ndarray:
    """Return the pixels of a file that is no JPEG in sRGB, by its colour profile or PNG's gamma."""
    try:
        with Image.open(io.BytesIO(data)) as photo:
            profile, gamma, has_srgb = photo.info.get("icc_profile"), photo.info.get("gamma"), "srgb" in photo.info
    except Exception:  # a header that Pillow does not understand says nothing of colours
        return image
    return to_srgb(image, profile) if profile else from_gamma(image, None if has_srgb else gamma)
