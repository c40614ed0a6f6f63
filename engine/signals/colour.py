"""Colours of photos as sRGB: profiles inside files, PNG's gamma, CIE Lab. Images are uint8 [H, W, 3] unless said."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

_D50 = np.array([0.9642, 1.0, 0.8249])
_XYZ_TO_RGB = np.array(  # from XYZ under D50 to linear sRGB under D65 (Bradford; ICC's sRGB profile)
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
_SRGB_GAMMA = 1 / 2.2


def to_srgb(image: np.ndarray, profile: bytes | None) -> np.ndarray:
    """Return the image in sRGB; as it is without a profile, with one of sRGB or of other channels, or a damaged one."""
    if profile is None or not is_foreign(profile):
        return image
    try:
        transform = _transform(profile)
        return np.asarray(ImageCms.applyTransform(Image.fromarray(image), transform))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def is_foreign(profile: bytes | None) -> bool:
    """Return whether a profile is one of RGB that is not sRGB."""
    if not profile or profile[16:20] != b"RGB ":
        return False
    return b"sRGB" not in profile and b"s\0R\0G\0B" not in profile


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), "RGB", "RGB", renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC
    )


def from_gamma(image: np.ndarray, gamma: float | None) -> np.ndarray:
    """Return a PNG's levels, stored as light to the power of `gamma`, in sRGB; as they are near sRGB's gamma."""
    if not gamma or abs(gamma - _SRGB_GAMMA) < 0.02:
        return image
    light = (np.arange(256) / 255) ** (1 / gamma)
    return np.rint(255 * _encoded(light)).astype(np.uint8)[image]


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Return CIE Lab under D50 (float [H, W, 3]: L 0..100, a and b about -128..127) as sRGB."""
    lightness = (lab[..., 0] + 16) / 116
    f = np.stack([lightness + lab[..., 1] / 500, lightness, lightness - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * _D50
    return np.rint(255 * _encoded(np.clip(xyz @ _XYZ_TO_RGB.T, 0, 1))).astype(np.uint8)


def _encoded(light: np.ndarray) -> np.ndarray:
    """Return linear light 0..1 with sRGB's curve (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
