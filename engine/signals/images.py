"""Photos: decode them, and cut the square views that encoders see. Functions of (image, rng); no state.

Legend: an image is uint8 [H, W, 3], RGB. A view is uint8 [size, size, 3].
JPEG goes through simplejpeg (libjpeg-turbo), all else through OpenCV, which runs threads of its own: a data worker that
owns one core calls `single_thread()` once, otherwise N workers start N x cores threads.
"""

import enum
import math
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from engine.config import AugmentConfig
from engine.errors import UserError
from engine.signals.colour import is_foreign, to_srgb
from engine.signals.frames import decode_tiff, richest_frame, with_stored_colours
from engine.signals.image_headers import file_header, jpeg_segments, tiff_orientation
from engine.signals.photo_cost import cost

MAX_PIXELS = 100_000_000  # a photo beyond this is refused before decoding (300 MB as RGB)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
VIEW_DRAWS = 12  # random numbers of one training view
_SHRINK = 1.2  # beyond this factor linear interpolation would alias: average areas instead
_STRIP = 64  # rows of a transparent photo that are laid over white at a time
_HARMLESS = ("extraneous bytes before marker", "Invalid SOS parameters")  # libjpeg warnings that lose no pixel


def single_thread() -> None:
    """Make OpenCV work in the calling thread only (cv2.setNumThreads(1), for the whole process); same results."""
    cv2.setNumThreads(1)


def decode(data: bytes, min_side: int = 0, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the photo upright (EXIF orientation applied) as uint8 [H, W, 3] RGB.

    Grey, CMYK, Lab, palette, 16-bit (scaled to 8) and transparent (laid over white) photos become RGB, colours sRGB by
    the file's profile; of several frames or pages the one with most detail is taken.

    Args:
        data: a JPEG, PNG, WebP, TIFF, BMP or GIF file.
        min_side: a JPEG may be decoded at n/8 of its size, averaged by libjpeg, as long as no side gets shorter than
            this. 0 = full size.
        max_pixels: a photo of more is refused by its header, before it is decoded.

    Raises:
        ValueError: with the reason: empty, truncated, corrupt, unknown format, too many pixels.
    """
    if not data:
        raise UserError("photo", "0 bytes", "an image file")
    if data[:2] == b"\xff\xd8":
        return _decode_jpeg(data, min_side, max_pixels)
    width, height, orientation = file_header(data)
    _check_size(width, height, max_pixels)
    image = richest_frame(data)
    if image is None and data[:2] in (b"II", b"MM") and (image := decode_tiff(data)) is not None:
        orientation = tiff_orientation(data)  # of a TIFF that OpenCV reads it turns the photo itself
    image = _decode_other(data) if image is None else image
    return _turn(with_stored_colours(image, data), orientation)


def decode_side(size: int, augment: AugmentConfig) -> int:
    """Return the `min_side` for which no crop of `training_view` has fewer pixels per side than the view.

    So scaled decoding never makes a view blurrier.
    """
    return math.ceil(size * math.sqrt(augment.max_aspect / max(augment.min_area, 1e-3)))


def evaluation_view(image: np.ndarray, size: int) -> np.ndarray:
    """Return the centre square, resized so that the photo's short side becomes `size` (antialiased when it shrinks)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image[top : top + side, left : left + side], size)


def training_view(
    image: np.ndarray,
    size: int,
    draws: Sequence[float] | np.ndarray,
    augment: AugmentConfig,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return one random view: crop, rotation, flips, colours, in this order.

    Crop: its share of the area is uniform in [min_area, 1], its width/height log-uniform in [1/max_aspect,
    max_aspect], both as far as the photo's own shape allows, its place uniform; resized to a square, averaging areas
    where it shrinks by more than 1.2. Rotation: clockwise about the crop's centre by an angle uniform in
    +-rotate_degrees; corners show the photo around the crop, mirrored beyond its border.

    Colours, for a pixel p = (R, G, B) in 0..255, factors b, c, s uniform in [1 - x, 1 + x] of brightness, contrast,
    saturation x, and an angle h uniform in +-hue turns:
        1. brightness  p <- b p
        2. contrast    p <- c p + (1 - c) m      m = mean luma (0.299 R + 0.587 G + 0.114 B) of the view after step 1
        3. saturation  p <- s p + (1 - s) luma(p)
        4. hue         p <- p rotated by h about the grey axis (1, 1, 1)
        5. p is rounded and clipped to 0..255, once.
    All steps are linear, so they are one 3x4 matrix.

    Args:
        image: the photo.
        size: side of the view, pixels.
        draws: VIEW_DRAWS numbers in [0, 1), each for one change, so that switching one off leaves the others alone.
        augment: how far the changes go.
        out: where the view is written, if given: uint8 [size, size, 3], contiguous.
    """
    top, left, height, width = _crop_box(image.shape[:2], draws, augment)
    if augment.rotate_degrees:
        angle = (2 * draws[4] - 1) * augment.rotate_degrees
        view = _rotated(image, (top, left, height, width), size, angle)
    else:
        view = _resize(image[top : top + height, left : left + width], size)
    horizontal, vertical = draws[5] < augment.horizontal_flip, draws[6] < augment.vertical_flip
    if horizontal or vertical:
        view = cv2.flip(view, -1 if horizontal and vertical else int(horizontal))
    return jitter(view, *colour_factors(draws[7:11], augment), out=out)


def colour_factors(draws: Sequence[float] | np.ndarray, augment: AugmentConfig) -> tuple[float, float, float, float]:
    """Return brightness, contrast, saturation factors and the hue angle (radians) for four numbers in [0, 1)."""
    brightness, contrast, saturation, hue = (2 * float(draw) - 1 for draw in draws)
    return (
        1 + brightness * augment.brightness,
        1 + contrast * augment.contrast,
        1 + saturation * augment.saturation,
        hue * augment.hue * 2 * math.pi,
    )


def jitter(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the image with changed colours as `training_view` defines them (hue in radians), in `out` if given."""
    scale = contrast * brightness
    # hue(saturation(p)) = s hue(p) + (1 - s) luma(p): turning about the grey axis leaves grey as it is
    turn = _hue_rotation(hue)
    luma = [scale * (1 - saturation) * weight for weight in LUMA]
    mean = sum(weight * value for weight, value in zip(LUMA, cv2.mean(image), strict=False))
    offset = (1 - contrast) * brightness * mean  # so steps 3 and 4 leave the offset as it is
    matrix = [[scale * saturation * t + grey for t, grey in zip(row, luma, strict=True)] + [offset] for row in turn]
    changed = cv2.transform(image, np.array(matrix), dst=out)
    if out is not None and changed is not out:
        out[...] = changed
    return changed


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Return the image as JPEG with 4:2:0 chroma (what cameras and PIL write). Raises ValueError when it cannot be."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")


class Change(enum.IntEnum):
    """What `to_jpeg` did; false for nothing."""

    COPIED = 0
    CONVERTED = 1
    SHRUNK = 2


def to_jpeg(data: bytes, max_side: int | None = None) -> tuple[bytes, Change]:
    """Return (JPEG bytes as `decode` sees them, what was done).

    An upright RGB or grey JPEG is returned as it is, after a look at its header and its end (a truncated one is found,
    one damaged in the middle is not); anything else is decoded and written with quality 95. With `max_side`, a photo
    whose longer side has more pixels is shrunk to it, averaging areas.

    Raises:
        ValueError: as `decode`.
    """
    min_side = 0
    cost(data)
    if data[:2] == b"\xff\xd8":
        width, height, colours = _jpeg_header(data)
        _check_size(width, height)
        orientation, scan, profile = jpeg_segments(data)
        if max_side is not None and max(width, height) > max_side:
            if data.rfind(b"\xff\xd9") < scan:
                raise ValueError("truncated JPEG (no end marker)")
            min_side = max(1, math.ceil(min(width, height) * max_side / max(width, height)))
        elif orientation == 1 and colours != "CMYK" and not is_foreign(profile):
            if data.rfind(b"\xff\xd9") < scan:
                raise ValueError("truncated JPEG (no end marker)")
            return data, Change.COPIED
    image = decode(data, min_side)
    height, width = image.shape[:2]
    if max_side is not None and (min_side or max(width, height) > max_side):
        scale = max_side / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return encode_jpeg(image), Change.SHRUNK
    return encode_jpeg(image), Change.CONVERTED


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Return width, height, and Gray, YCbCr, RGB or CMYK (which stands for YCCK too)."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: the file ends before its colours are known
        raise ValueError(f"damaged JPEG ({error})") from None
    return width, height, "CMYK" if colours in ("CMYK", "YCCK") else colours


def _decode_jpeg(data: bytes, min_side: int, max_pixels: int) -> np.ndarray:
    width, height, colours = _jpeg_header(data)
    _check_size(width, height, max_pixels)
    target = "CMYK" if colours == "CMYK" else "RGB"
    try:
        image = simplejpeg.decode_jpeg(data, target, min_height=min_side, min_width=min_side)
    except ValueError as error:
        if not any(warning in str(error) for warning in _HARMLESS):
            raise ValueError(f"damaged JPEG ({error})") from None
        image = simplejpeg.decode_jpeg(data, target, min_height=min_side, min_width=min_side, strict=False)
    if colours == "CMYK":  # stored inverted, as Adobe does: 255 = no ink
        image = cv2.multiply(image[..., :3], cv2.merge([image[..., 3]] * 3), scale=1 / 255)
    orientation, _, profile = jpeg_segments(data)
    return _turn(to_srgb(image, profile), orientation)


def _check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if width < 1 or height < 1 or width * height > max_pixels:
        raise UserError("photo", f"{width} x {height} pixels", f"at most {max_pixels} in all")


def _decode_other(data: bytes) -> np.ndarray:
    """Return a non-JPEG file as RGB, in its stored orientation."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # raised, not printed
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"damaged image ({error.err})") from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise ValueError("truncated or damaged image")
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    if image.dtype != np.uint8:
        raise UserError("photo", f"pixels of type {image.dtype}", "8 or 16 bits per channel")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    opaque = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(image), _STRIP):  # in strips: as floats the whole photo would take eight times its bytes
        part = image[top : top + _STRIP]
        alpha = part[..., 3:].astype(np.float32) / 255
        opaque[top : top + _STRIP] = np.rint(part[..., 2::-1] * alpha + 255 * (1 - alpha))
    return opaque


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation 1..8 (anything else counts as 1)."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Return a square of `size`.

    Shrinking by up to 1.2 is linear interpolation; by up to 2, linear interpolation to twice the size, then the mean of
    2 x 2 (twice as fast as INTER_AREA, on average within 1 level of it); beyond, INTER_AREA.
    """
    height, width = image.shape[:2]
    shrink = max(height, width) / size
    if shrink <= _SHRINK:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    if shrink <= 2:
        image = cv2.resize(image, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    elif min(height, width) < size:  # INTER_AREA would not average when one side grows
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _crop_box(
    shape: tuple[int, ...], draws: Sequence[float] | np.ndarray, augment: AugmentConfig
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop from four numbers in [0, 1)."""
    rows, columns = shape
    area_draw, aspect_draw, row_draw, column_draw = (float(draw) for draw in draws[:4])
    area = augment.min_area + (1 - augment.min_area) * area_draw
    photo = columns / rows
    low = max(1 / augment.max_aspect, area * photo)  # narrower would be higher than the photo
    high = min(augment.max_aspect, photo / area)  # wider would be wider than the photo
    if low <= high:
        aspect = low * (high / low) ** aspect_draw
        height, width = math.sqrt(area * rows * columns / aspect), math.sqrt(area * rows * columns * aspect)
    else:  # a very long photo: the largest crop of the nearest aspect
        aspect = augment.max_aspect if photo > 1 else 1 / augment.max_aspect
        height, width = min(rows, columns / aspect), min(columns, rows * aspect)
    crop_rows, crop_columns = min(rows, max(1, round(height))), min(columns, max(1, round(width)))
    top = int(row_draw * (rows - crop_rows + 1))
    left = int(column_draw * (columns - crop_columns + 1))
    return top, left, crop_rows, crop_columns


def _rotated(image: np.ndarray, box: tuple[int, int, int, int], size: int, degrees: float) -> np.ndarray:
    """Return the crop, resized to a square and turned about its centre, in one interpolation (areas averaged first)."""
    top, left, height, width = box
    shrink = min(height, width) / size
    if shrink > _SHRINK:
        rows, columns = max(1, round(image.shape[0] / shrink)), max(1, round(image.shape[1] / shrink))
        vertical, horizontal = rows / image.shape[0], columns / image.shape[1]
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
        top, height, left, width = top * vertical, height * vertical, left * horizontal, width * horizontal
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    scale_x, scale_y = width / size, height / size
    half = (size - 1) / 2
    matrix = np.array(  # from view coordinates to photo coordinates
        [
            [scale_x * cosine, scale_x * sine, left + (width - 1) / 2 - half * scale_x * (cosine + sine)],
            [-scale_y * sine, scale_y * cosine, top + (height - 1) / 2 - half * scale_y * (cosine - sine)],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _hue_rotation(angle: float) -> tuple[tuple[float, float, float], ...]:
    """Rotation of RGB space about (1, 1, 1) / sqrt(3) (Rodrigues): 3 x 3."""
    cosine, sine = math.cos(angle), math.sin(angle) / math.sqrt(3)
    grey = (1 - cosine) / 3
    same, next_one, last = cosine + grey, grey - sine, grey + sine
    return (same, next_one, last), (last, same, next_one), (next_one, last, same)
