"""Photos: every format upright and right, damage named, views against their definitions."""

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from engine.config import AugmentConfig
from engine.signals import images

PLAIN = AugmentConfig(
    min_area=1.0, max_aspect=1.0, brightness=0, contrast=0, saturation=0, hue=0, horizontal_flip=0, vertical_flip=0
)
SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photo-like image: low frequencies, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def draws(seed: int) -> np.ndarray:
    """The random numbers of one view."""
    return np.random.default_rng(seed).random(images.VIEW_DRAWS)


def far(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape and one.dtype == np.uint8
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[
            ("RGB", "JPEG"),
            ("L", "JPEG"),
            ("CMYK", "JPEG"),
            ("RGB", "WEBP"),
            ("RGB", "TIFF"),
            ("RGB", "BMP"),
            ("P", "GIF"),
        ],
        *[("RGB", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")],
    ],
)
def test_every_format_equals_pillow(mode: str, kind: str) -> None:
    data = saved(Image.fromarray(smooth(40, 61)).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert far(images.decode(data), expected) <= 2
    jpeg, converted = images.to_jpeg(data)
    assert converted == (kind != "JPEG" or mode == "CMYK")
    assert jpeg == data or far(images.decode(jpeg), images.decode(data)) <= (255 if mode in ("1", "P") else 24)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(smooth(24, 40)), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert far(images.decode(data), expected) <= 2
    jpeg, converted = images.to_jpeg(data)
    assert converted == (kind != "JPEG" or orientation != 1)
    assert far(images.decode(jpeg), expected) <= 24
    assert images.to_jpeg(jpeg) == (jpeg, False)


def test_transparent_pixels_are_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 128)
    pixels[1, 1] = (10, 20, 30, 255)
    image = images.decode(saved(Image.fromarray(pixels, "RGBA"), "PNG"))
    assert image[0, 0].tolist() == [255, 127, 127] and image[1, 1].tolist() == [10, 20, 30]
    assert image[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    for pixels in (wide, wide[..., 0]):
        data = cv2.imencode(kind, pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()
        expected = np.rint(pixels / 257).astype(np.uint8)
        expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
        assert np.array_equal(images.decode(data), expected)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to nothing in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_decoding() -> None:
    jpeg = bytearray(images.encode_jpeg(smooth(16, 16)))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    bmp = bytearray(saved(Image.fromarray(smooth(8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 20_000, -20_000)
    for bomb in (bytes(jpeg), png_header(20_000, 20_000), bytes(bmp)):
        for use in (images.decode, images.to_jpeg):
            with pytest.raises(ValueError, match="got 20000 x 20000 pixels, allowed: at most 100000000"):
                use(bomb)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_truncated_files_are_refused(kind: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3)).astype(np.uint8)), kind)
    for use in (images.decode, images.to_jpeg):
        with pytest.raises(ValueError, match=r"truncated|damaged|unknown format|pixels"):
            use(data[: max(1, int(share * len(data)))])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"no image at all", b"<html></html>", b"BM", b"GIF89a"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    for use in (images.decode, images.to_jpeg):
        with pytest.raises(ValueError, match=r"photo: got 0 bytes|unknown format|truncated|damaged"):
            use(data)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBP", b"II*\0"]),
)
def test_random_bytes_never_raise_anything_else(data: bytes, start: bytes) -> None:
    with pytest.raises(ValueError, match=r"photo|truncated|damaged"):
        images.decode(start + data)


def test_damage_in_the_middle_and_harmless_warnings(make_jpeg: Callable[..., bytes]) -> None:
    data = images.encode_jpeg(smooth(64, 64))
    padded = data[:-2] + b"\0\0\0" + data[-2:]  # "extraneous bytes before marker": every pixel is there
    assert np.array_equal(images.decode(padded), images.decode(data))
    assert np.array_equal(images.decode(data + b"trailer"), images.decode(data))
    noise = bytearray(make_jpeg(0, 64, 64))
    noise[len(noise) // 2 : len(noise) // 2 + 40] = b"\xff\xd3" * 20  # restart markers where none belong
    with pytest.raises(ValueError, match="damaged JPEG"):
        images.decode(bytes(noise))


@pytest.mark.parametrize(
    ("height", "width", "least", "shape"), [(256, 256, 105, (128, 128)), (512, 300, 64, (128, 75))]
)
def test_scaled_decoding_keeps_the_sides_long_enough(
    height: int, width: int, least: int, shape: tuple[int, int]
) -> None:
    image = smooth(height, width)
    data = images.encode_jpeg(image)
    small = images.decode(data, least)
    assert min(small.shape[:2]) >= least and small.shape[:2] == shape
    assert far(small, cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)) <= 12
    assert images.decode(data, 10_000).shape == (height, width, 3)


def test_jpeg_round_trip() -> None:
    image = smooth(30, 45)
    assert far(images.decode(images.encode_jpeg(image)), image) <= 24
    assert len(images.encode_jpeg(image, 30)) < len(images.encode_jpeg(image))


def test_evaluation_view_is_the_centre_square() -> None:
    image = smooth(40, 100)
    assert np.array_equal(images.evaluation_view(image, 40), image[:, 30:70])
    assert np.array_equal(images.evaluation_view(image.transpose(1, 0, 2), 40), image.transpose(1, 0, 2)[30:70])
    blocks = image[:, 30:70].reshape(20, 2, 20, 2, 3).mean(axis=(1, 3))
    assert np.abs(images.evaluation_view(image, 20) - blocks).max() <= 0.51  # halving = the mean of 2 x 2 pixels


@pytest.mark.parametrize("period", [2, 3, 5])
@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_shrinking_is_antialiased(period: int, degrees: float) -> None:
    """Fine stripes become grey; linear interpolation without averaging would show stripes of another width."""
    stripes = np.repeat(np.where(np.arange(300) % period < period / 2, 255, 0)[None, :, None], 300, axis=0)
    image = np.repeat(stripes, 3, axis=2).astype(np.uint8)
    augment = AugmentConfig(**{**PLAIN.__dict__, "rotate_degrees": degrees})
    for view in (images.evaluation_view(image, 32), images.training_view(image, 32, draws(1), augment)):
        assert view.std() <= 12 + 30 * (period == 5)  # 127 where the stripes survive


@given(SIZES, st.integers(4, 70), st.integers(0, 999), st.sampled_from([0.0, 180.0]))
def test_training_view_is_deterministic_in_shape_and_content(
    shape: tuple[int, int], size: int, seed: int, degrees: float
) -> None:
    image = smooth(*shape)
    augment = AugmentConfig(vertical_flip=0.5, rotate_degrees=degrees, min_area=0.1, max_aspect=3.0)
    before = image.copy()
    first = images.training_view(image, size, draws(seed), augment)
    assert first.shape == (size, size, 3) and first.dtype == np.uint8 and np.array_equal(image, before)
    assert np.array_equal(first, images.training_view(image, size, draws(seed), augment))


@pytest.mark.parametrize(("height", "width"), [(32, 200), (200, 20), (70, 40), (38, 60), (64, 64), (33, 37), (10, 12)])
def test_resizing_any_shape_averages_what_shrinks(height: int, width: int) -> None:
    """Noise keeps its mean, and loses variance in proportion to the area that one pixel of the view stands for."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    view = images._resize(noise, 32)
    assert view.mean() == pytest.approx(noise.mean(), abs=6)
    area = max(1, height / 32) * max(1, width / 32)
    assert view.std() <= 1.25 * noise.std() / np.sqrt(area)


def area_means(image: np.ndarray, size: int) -> np.ndarray:
    """Each pixel of the view = the mean of the photo over its own rectangle, edges weighted by their share; float64."""

    def weights(length: int) -> np.ndarray:
        edges = np.linspace(0, length, size + 1)
        lower, upper = edges[:-1, None], edges[1:, None]
        pixels = np.arange(length)
        return np.clip(np.minimum(upper, pixels + 1) - np.maximum(lower, pixels), 0, None) * size / length

    return np.einsum("ih,hwc,jw->ijc", weights(image.shape[0]), image.astype(np.float64), weights(image.shape[1]))


@pytest.mark.parametrize("side", [42, 52, 63, 81, 100, 160, 333])
def test_shrinking_comes_near_the_mean_over_each_area(side: int) -> None:
    """A photo with grain, shrunk 1.3 to 10 times; without averaging the grain alone would differ by 8 levels."""
    grain = np.random.default_rng(3).normal(0, 10, (side, side, 1))
    image = np.clip(smooth(side, side) + cv2.GaussianBlur(grain, (0, 0), 0.7)[..., None] * 2, 0, 255).astype(np.uint8)
    difference = np.abs(images._resize(image, 32) - area_means(image, 32))
    assert difference.mean() <= 1.5 and difference.max() <= 12


@given(SIZES, st.integers(0, 99))
def test_a_view_is_written_where_it_is_wanted(shape: tuple[int, int], seed: int) -> None:
    image, augment = smooth(*shape), AugmentConfig(vertical_flip=0.5)
    views = np.zeros((3, 24, 24, 3), np.uint8)
    images.training_view(image, 24, draws(seed), augment, views[1])
    assert np.array_equal(views[1], images.training_view(image, 24, draws(seed), augment))
    assert not views[0].any() and not views[2].any()


def test_nothing_random_is_the_evaluation_view() -> None:
    image = smooth(70, 70)
    assert np.array_equal(images.training_view(image, 48, draws(0), PLAIN), images.evaluation_view(image, 48))


def test_one_setting_leaves_the_other_draws_alone() -> None:
    image = smooth(60, 80)
    with_flip, without = AugmentConfig(horizontal_flip=1.0), AugmentConfig(horizontal_flip=0.0)
    one, other = (images.training_view(image, 32, draws(5), a) for a in (with_flip, without))
    assert np.array_equal(one[:, ::-1], other)


@given(SIZES, st.integers(0, 9999), st.floats(0.05, 1), st.floats(1, 4))
def test_crops_keep_the_asked_area_and_aspect(
    shape: tuple[int, int], seed: int, min_area: float, max_aspect: float
) -> None:
    rows, columns = shape
    draws = np.random.default_rng(seed).random(12)
    augment = AugmentConfig(min_area=min_area, max_aspect=max_aspect)
    top, left, height, width = images._crop_box(shape, draws, augment)
    assert min(top, left) >= 0 and top + height <= rows and left + width <= columns
    rounding = 1 / height + 1 / width + 1e-9
    assert 1 / max_aspect / (1 + 2 * rounding) <= width / height <= max_aspect * (1 + 2 * rounding)
    if 1 / max_aspect <= columns / rows <= max_aspect:  # otherwise the photo's own shape may forbid the area
        assert height * width / (rows * columns) >= min_area * (1 - rounding) - 1e-9


def test_crops_cover_the_range() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([images._crop_box((400, 400), rng.random(12), AugmentConfig()) for _ in range(3000)])
    area = boxes[:, 2] * boxes[:, 3] / 160_000
    assert area.min() < 0.51 and area.max() > 0.99 and np.mean(area) == pytest.approx(0.75, abs=0.01)
    assert (boxes[:, 0] == 0).any() and (boxes[:, 0] + boxes[:, 2] == 400).any()


@given(st.integers(0, 999), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.floats(-3.2, 3.2))
def test_colours_are_within_two_levels_of_their_definition(
    seed: int, brightness: float, contrast: float, saturation: float, hue: float
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    p = brightness * image.astype(np.float64)
    p = contrast * p + (1 - contrast) * (p @ luma).mean()
    p = saturation * p + (1 - saturation) * (p @ luma)[..., None]
    axis = np.ones(3) / np.sqrt(3)  # Rodrigues: v cos h + (axis x v) sin h + axis (axis . v)(1 - cos h)
    p = p * np.cos(hue) + np.cross(axis, p) * np.sin(hue) + axis * (p @ axis)[..., None] * (1 - np.cos(hue))
    expected = np.clip(np.rint(p), 0, 255).astype(np.uint8)
    assert far(images.jitter(image, brightness, contrast, saturation, hue), expected) <= 2


def test_hue_turns_red_to_green_and_grey_stays() -> None:
    colours = np.array([[[200, 0, 0], [90, 90, 90]]], np.uint8)
    assert images.jitter(colours, 1, 1, 1, 2 * np.pi / 3).tolist() == [[[0, 200, 0], [90, 90, 90]]]


def test_colour_factors_span_their_ranges() -> None:
    augment = AugmentConfig(brightness=0.4, contrast=0.2, saturation=0.1, hue=0.25)
    assert images.colour_factors(np.zeros(4), augment) == pytest.approx((0.6, 0.8, 0.9, -np.pi / 2))
    assert images.colour_factors(np.full(4, 0.5), augment) == pytest.approx((1, 1, 1, 0))


def test_rotation_turns_about_the_centre() -> None:
    image = smooth(41, 41)
    box = (0, 0, 41, 41)
    assert far(images._rotated(image, box, 41, 90.0), np.ascontiguousarray(np.rot90(image, -1))) <= 1
    assert far(images._rotated(image, box, 41, 0.0), image) == 0
    large = smooth(164, 164)
    turned = images._rotated(large, (0, 0, 164, 164), 41, 180.0)
    assert far(turned, images.evaluation_view(large, 41)[::-1, ::-1]) <= 4


def test_decode_side_leaves_enough_pixels_for_every_crop() -> None:
    augment = AugmentConfig()
    side = images.decode_side(64, augment)
    boxes = [images._crop_box((side, side), np.random.default_rng(i).random(12), augment) for i in range(500)]
    assert min(min(height, width) for _, _, height, width in boxes) >= 63
