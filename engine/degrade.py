"""Damage to evaluation inputs: the paper's noisy barcodes and blurred photos, and barcode fragments.

Everything is a function of its input and `rng`; with `schema.rng_for(seed, 0, key, stream)` the damage depends on the
specimen only. Barcodes are clean strings (A, C, G, T, N).
"""

import dataclasses

import cv2
import numpy as np

from engine.barcodes import reverse_complement

_BASES = np.frombuffer(b"ACGT", dtype=np.uint8)
_N = ord("N")
_CODE = np.full(256, 4, dtype=np.uint8)
_CODE[_BASES] = np.arange(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarcodePreset:
    """Rates per nucleotide and shares of the length at severity 1. The defaults are the authors' release's."""

    substitution: float = 0.01
    masking: float = 0.003
    deletion: float = 0.002
    insertion: float = 0.002
    run: float = 0.05  # share of the barcode that one run of N covers
    truncation: float = 0.10  # share of the barcode cut off its end


PAPER = BarcodePreset()


def degrade_barcode(
    sequence: str, rng: np.random.Generator, severity: float = 1.0, preset: BarcodePreset = PAPER
) -> str:
    """Return a damaged barcode. In this order: substitution, masking, deletion and insertion, one run of N, truncation.

    Args:
        sequence: a clean barcode; "" stays "".
        rng: where the damage comes from.
        severity: multiplies every rate and share (each at most 1); 0 = no damage.
        preset: the rates and shares at severity 1.

    Raises:
        ValueError: when severity is negative or not a number.
    """
    if not severity >= 0:
        raise ValueError(f"severity: got {severity}, allowed 0 or more")
    amount = {field.name: min(1.0, severity * getattr(preset, field.name)) for field in dataclasses.fields(preset)}
    sequence = substitute(sequence, rng, amount["substitution"])
    sequence = mask(sequence, rng, amount["masking"])
    sequence = insert_and_delete(sequence, rng, amount["deletion"], amount["insertion"])
    sequence = mask_run(sequence, rng, amount["run"])
    return truncate(sequence, amount["truncation"])


def substitute(sequence: str, rng: np.random.Generator, rate: float) -> str:
    """Replace each of A, C, G, T with probability `rate` by one of the three others; N stays."""
    letters = _letters(sequence)
    codes = _CODE[letters]
    hit = (rng.random(len(letters)) < rate) & (codes < 4)
    letters[hit] = _BASES[(codes[hit] + rng.integers(1, 4, hit.sum())) % 4]
    return _string(letters)


def mask(sequence: str, rng: np.random.Generator, rate: float) -> str:
    """Replace each letter with probability `rate` by N."""
    letters = _letters(sequence)
    letters[rng.random(len(letters)) < rate] = _N
    return _string(letters)


def insert_and_delete(sequence: str, rng: np.random.Generator, deletion: float, insertion: float) -> str:
    """Letter by letter: leave it out with probability `deletion`; after a letter that is kept, insert a random base
    with probability `insertion`."""
    letters = _letters(sequence)
    kept = rng.random(len(letters)) >= deletion
    inserted = kept & (rng.random(len(letters)) < insertion)
    copies = kept.astype(np.int64) + inserted
    result = np.repeat(letters, copies)
    result[np.cumsum(copies)[inserted] - 1] = _BASES[rng.integers(0, 4, inserted.sum())]
    return _string(result)


def mask_run(sequence: str, rng: np.random.Generator, share: float) -> str:
    """Replace one run of int(share x length) letters at a uniform place by N."""
    run = int(share * len(sequence))
    start = int(rng.integers(0, len(sequence) - run + 1))
    return sequence[:start] + "N" * run + sequence[start + run :]


def truncate(sequence: str, share: float) -> str:
    """Cut int(share x length) letters off the end."""
    return sequence[: len(sequence) - int(share * len(sequence))]


def fragment(sequence: str, rng: np.random.Generator, length: int) -> str:
    """Return `length` nucleotides from a uniform start (the whole barcode when it is shorter), in half of the cases
    reverse-complemented. Raises ValueError when length is not positive."""
    if length < 1:
        raise ValueError(f"fragment length: got {length}, allowed 1 or more")
    start = int(rng.integers(0, max(1, len(sequence) - length + 1)))
    window = sequence[start : start + length]
    return reverse_complement(window) if rng.random() < 0.5 else window


def blur(image: np.ndarray, k: int) -> np.ndarray:
    """Return uint8 [H, W, 3]: every pixel is the rounded mean of the k x k pixels around it.

    Beyond the border the image is mirrored without repeating the edge pixel (cv2.BORDER_REFLECT_101, what cv2.blur does
    by default). Raises ValueError when k is even or not positive.
    """
    if k < 1 or k % 2 == 0:
        raise ValueError(f"blur kernel: got {k}, allowed: odd numbers from 1")
    return cv2.blur(image, (k, k), borderType=cv2.BORDER_REFLECT_101)


def _letters(sequence: str) -> np.ndarray:
    """A writable copy: uint8 [length]."""
    return np.frombuffer(bytearray(sequence, "ascii"), dtype=np.uint8)


def _string(letters: np.ndarray) -> str:
    return letters.tobytes().decode("ascii")
