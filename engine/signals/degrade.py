"""Damage to inputs: the paper's noisy barcodes and blurred photos, and barcode fragments.

Everything is a function of its input and `rng`; with `schema.rng_for(seed, 0, key, stream)` the damage depends on the
specimen only. Barcodes are clean strings (A, C, G, T, N).

Legend: B barcodes, W letters of the longest.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from engine.errors import UserError
from engine.signals import nucleotides
from engine.signals.nucleotides import BASES, CODES, reverse_complement


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarcodePreset:
    """Rates per nucleotide and shares of the length at severity 1. The defaults are the authors' release's."""

    substitution: float = 0.01
    masking: float = 0.003
    deletion: float = 0.002
    insertion: float = 0.002
    run: float = 0.05  # share of the barcode that one run of N covers
    truncation: float = 0.10  # share of the barcode cut off its end

    @classmethod
    def only(cls, **rates: float) -> "BarcodePreset":
        """Return a preset of these rates alone, the others 0."""
        return cls(**{field.name: rates.get(field.name, 0.0) for field in dataclasses.fields(cls)})


PAPER = BarcodePreset()
_N = ord("N")
_PER_LETTER = ("substitution", "masking", "deletion", "insertion")


def degrade_barcode(
    sequence: str, rng: np.random.Generator, severity: float = 1.0, preset: BarcodePreset = PAPER
) -> str:
    """Return one damaged barcode, see `degrade_batch`."""
    return degrade_batch([sequence], [rng], np.array([severity]), preset)[0]


def degrade_batch(
    sequences: Sequence[str],
    rngs: Sequence[np.random.Generator],
    severities: np.ndarray,
    preset: BarcodePreset = PAPER,
) -> list[str]:
    """Return damaged barcodes, each from its own generator and at its own severity, whatever its companions are.

    In this order: letter by letter, each of A, C, G, T is substituted by one of the three others, is masked by N, is
    deleted, and gets a random base inserted after it unless it was deleted; one run of N at a uniform place; the end
    is cut off. A letter's choice takes 16 random bits, so rates are multiples of 2^-16.

    Args:
        sequences: clean barcodes [B]; "" stays "".
        rngs: [B], of any bit generator of 64-bit words.
        severities: float64 [B]; multiplies every rate and share (each at most 1). 0 = no damage.
        preset: the rates and shares at severity 1.

    Raises:
        UserError: when a severity is negative or not a number.
    """
    if not (severities >= 0).all():
        raise UserError("severity", severities.min(), "0 or more")
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    width = 4 * -(-int(lengths.max(initial=0)) // 4)
    letters = nucleotides.letters("".join([sequence.ljust(width, "\0") for sequence in sequences]))
    words = np.zeros((len(_PER_LETTER), len(sequences), width // 4), dtype=np.uint64)  # four letters a word
    place = np.zeros(len(sequences))
    for row, (rng, length) in enumerate(zip(rngs, lengths.tolist(), strict=True)):
        count = -(-length // 4)
        raw = rng.bit_generator.random_raw(1 + len(words) * count)
        words[:, row, :count] = raw[1:].reshape(len(words), count)
        place[row] = (raw[0] >> np.uint64(11)) * 2.0**-53
    draws = words.view(np.uint16)
    rates = np.array([getattr(preset, name) for name in _PER_LETTER])[:, None] * severities
    limits = np.clip(np.rint(rates * 2**16), 0, 2**16).astype(np.uint32)
    substituted, masked, deleted, inserted = (
        np.flatnonzero(hit & (letters > 0).reshape(hit.shape)) for hit in draws < limits[:, :, None]
    )
    substituted = substituted[letters[substituted] != _N]
    other = 1 + draws[0].reshape(-1)[substituted] % 3
    letters[substituted] = BASES[(CODES[letters[substituted]] + other) % 4]
    letters[masked] = _N
    copies = (letters > 0).astype(np.int64)
    copies[inserted] = 2
    copies[deleted] = 0
    result = np.repeat(letters, copies)
    inserted = inserted[copies[inserted] == 2]
    result[np.cumsum(copies)[inserted] - 1] = BASES[draws[3].reshape(-1)[inserted] % 4]
    return _without_run_and_tail(result, copies.reshape(len(sequences), width).sum(axis=1), place, severities, preset)


def _without_run_and_tail(
    letters: np.ndarray, lengths: np.ndarray, place: np.ndarray, severities: np.ndarray, preset: BarcodePreset
) -> list[str]:
    """Mask one run of each barcode (at `place` in [0, 1)) and cut its end; the barcodes stand in a row in `letters`."""
    runs = (np.minimum(1.0, severities * preset.run) * lengths).astype(np.int64)
    lost = (np.minimum(1.0, severities * preset.truncation) * lengths).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    first = starts + (place * (lengths - runs + 1)).astype(np.int64)
    for low, high in zip(first.tolist(), (first + runs).tolist(), strict=True):
        letters[low:high] = _N
    joined = nucleotides.text(letters)
    return [joined[a:b] for a, b in zip(starts.tolist(), (starts + lengths - lost).tolist(), strict=True)]


def fragment(sequence: str, rng: np.random.Generator, length: int) -> str:
    """Return `length` nucleotides from a uniform start, in half of the cases reverse-complemented.

    A shorter barcode comes whole. Raises UserError when length is not positive.
    """
    if length < 1:
        raise UserError("fragment length", length, "1 or more")
    place, strand = rng.random(2)
    window = window_at(sequence, length, place)
    return reverse_complement(window) if strand < 0.5 else window


def window_at(sequence: str, length: int, place: float) -> str:
    """Return `length` nucleotides, where `place` in [0, 1) stands for the possible starts in order."""
    start = int(place * max(1, len(sequence) - length + 1))
    return sequence[start : start + length]


def blur(image: np.ndarray, k: int) -> np.ndarray:
    """Return uint8 [H, W, 3]: every pixel is the rounded mean of the k x k pixels around it.

    Beyond the border the image is mirrored without repeating the edge pixel (cv2.BORDER_REFLECT_101, what cv2.blur does
    by default). Raises UserError when k is even or not positive.
    """
    if k < 1 or k % 2 == 0:
        raise UserError("blur kernel", k, "odd numbers from 1")
    return cv2.blur(image, (k, k), borderType=cv2.BORDER_REFLECT_101)
