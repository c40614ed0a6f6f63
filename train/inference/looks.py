"""What a photo looks like, without any model: how far it is from the photos that a model was trained with.

A tower gives every image a name: of six kinds of photos of nothing (text, clouds, ...) all were Lepidoptera for a model
that knows no other order, and its features do not tell them apart. Contrast, colour and the strength of edges do.
A photo's distance is that to its third nearest of the training photos, as they are and blurred, in these numbers,
whitened: evidence for the rules and caps of a photo alone.

Legend: S image side, N photos, P photos kept, L numbers of a photo.
"""

from collections.abc import Sequence
from functools import cached_property

import cv2
import numpy as np

from train.inference.experts import sharpness

PHOTO_FAR = "photo_far"  # name of the evidence
SIDE = 64  # pixels at which a photo is looked at
NUMBERS = 24
MOST = 600  # photos kept as they are; half as many blurred
BLURS = (5, 15)  # pixels of SIDE
_NEIGHBOUR = 3
_RIDGE = 0.05  # of the variance in a direction, in those of a number


def looks(view: np.ndarray) -> np.ndarray:
    """Return a photo's numbers, float32 [L], of its view uint8 [S, S, 3]."""
    view = cv2.resize(view, (SIDE, SIDE), interpolation=cv2.INTER_AREA) if view.shape[0] != SIDE else view
    colours = view.astype(np.float32) / 255
    grey, vivid = colours.mean(2), np.ptp(colours, axis=2)
    coarse = cv2.resize(grey, (SIDE // 4, SIDE // 4), interpolation=cv2.INTER_AREA)
    edge = np.concatenate([grey[: SIDE // 8].ravel(), grey[-SIDE // 8 :].ravel()])
    middle = grey[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4]
    steps = np.hypot(np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1])
    spread, coarse_steps = _log(grey.std()), sum(np.abs(np.diff(coarse, axis=axis)).mean() for axis in (0, 1))
    quarters = cv2.resize(colours, (2, 2), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    return np.array(
        [
            *(grey.mean(), spread, vivid.mean(), _log(vivid.std()), sharpness(view), _log(coarse.std()) - spread),
            *(middle.mean() - edge.mean(), _log(edge.std()), _log(coarse_steps / (grey.std() + 0.01))),
            *np.quantile(grey, (0.05, 0.5, 0.95)),
            *(np.log(np.quantile(steps, (0.3, 0.6, 0.9, 0.99)) + 0.003)),
            *(quarters[:, 0] - quarters[:, 1]),
            *(quarters[:, 2] - quarters[:, 1]),
        ],
        dtype=np.float32,
    )


def _log(value: float) -> float:
    return float(np.log(value + 0.01))


def blurred(view: np.ndarray, number: int) -> np.ndarray:
    """Blur a view by one of BLURS, in turn."""
    return cv2.blur(cv2.resize(view, (SIDE, SIDE), interpolation=cv2.INTER_AREA), (BLURS[number % len(BLURS)],) * 2)


class Photos:
    """The photos that a model was trained with, by their numbers."""

    def __init__(self, kept: Sequence[Sequence[float]]) -> None:
        """Make it of the numbers of P photos."""
        self._kept = np.array(kept, dtype=np.float64)

    @cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean [L], and what turns differences from it into independent ones of about 1, [L, L]."""
        spread = self._kept.std(axis=0) + 1e-6
        variance, axes = np.linalg.eigh(np.cov((self._kept / spread).T))
        return self._kept.mean(axis=0), axes / np.sqrt(variance + _RIDGE) / spread[:, None]

    @cached_property
    def _points(self) -> np.ndarray:
        mean, scale = self._scale
        return (self._kept - mean) @ scale

    def far(self, numbers: np.ndarray) -> np.ndarray:
        """Return the log of the distance to the third nearest, float64 [N], of photos' numbers float [N, L]."""
        mean, scale = self._scale
        points = (numbers.astype(np.float64) - mean) @ scale
        square = (points**2).sum(1)[:, None] + (self._points**2).sum(1) - 2 * points @ self._points.T
        place = min(_NEIGHBOUR, len(self._points)) - 1
        return 0.5 * np.log(np.maximum(np.partition(square, place, axis=1)[:, place], 1e-6))
