"""Damage to inputs: the paper's noisy barcodes and blurred photos, and barcode fragments.

Everything is a function of its input and `rng`; with `schema.rng_for(seed, 0, key, stream)` the damage depends on the
specimen only. Barcodes are clean strings (A, C, G, T, N).

Legend: B barcodes, W letters of the longest.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from engine.signals.barcodes import reverse_complement

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
_PER_LETTER = ("substitution", "masking", "deletion", "insertion")


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


def degrade_batch(
    sequences: Sequence[str],
    rngs: Sequence[np.random.Generator],
    severities: np.ndarray,
    preset: BarcodePreset = PAPER,
) -> list[str]:
    """Return many damaged barcodes, each from its own generator (Philox) and at its own severity.

    The operations of `degrade_barcode` in their order, some three times as fast. Operations on letters take 16 bits a
    letter, so their rates are multiples of 2^-16 below 1. What happens to a barcode does not depend on its companions.
    """
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    width = 4 * -(-int(lengths.max(initial=0)) // 4)
    letters = np.frombuffer("".join([s.ljust(width, "\0") for s in sequences]).encode("ascii"), dtype=np.uint8).copy()
    words = np.zeros((len(_PER_LETTER), len(sequences), width // 4), dtype=np.uint64)  # four letters a word
    place = np.zeros(len(sequences))
    for row, (rng, length) in enumerate(zip(rngs, lengths.tolist(), strict=True)):
        count = -(-length // 4)
        raw = rng.bit_generator.random_raw(1 + len(words) * count)  # type: ignore[attr-defined]
        words[:, row, :count] = raw[1:].reshape(len(words), count)
        place[row] = (raw[0] >> np.uint64(11)) * 2.0**-53
    draws = words.view(np.uint16)
    rates = np.array([getattr(preset, name) for name in _PER_LETTER])[:, None] * severities
    limits = np.clip(np.rint(rates * 2**16), 0, 2**16 - 1).astype(np.uint16)
    substituted, masked, deleted, inserted = (
        np.flatnonzero(hit & (letters > 0).reshape(hit.shape)) for hit in draws < limits[:, :, None]
    )
    substituted = substituted[letters[substituted] != _N]
    other = 1 + draws[0].reshape(-1)[substituted] % 3
    letters[substituted] = _BASES[(_CODE[letters[substituted]] + other) % 4]
    letters[masked] = _N
    copies = (letters > 0).astype(np.int64)
    copies[inserted] = 2
    copies[deleted] = 0
    result = np.repeat(letters, copies)
    inserted = inserted[copies[inserted] == 2]
    result[np.cumsum(copies)[inserted] - 1] = _BASES[draws[3].reshape(-1)[inserted] % 4]
    return _without_run_and_tail(result, copies.reshape(len(sequences), width).sum(axis=1), place, severities, preset)


def _without_run_and_tail(
    letters: np.ndarray, lengths: np.ndarray, place: np.ndarray, severities: np.ndarray, preset: BarcodePreset
) -> list[str]:
    """The last two operations, on barcodes that stand one after another in `letters`; `place` in [0, 1): of the run."""
    runs = (np.minimum(1.0, severities * preset.run) * lengths).astype(np.int64)
    lost = (np.minimum(1.0, severities * preset.truncation) * lengths).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    first = starts + (place * (lengths - runs + 1)).astype(np.int64)
    for low, high in zip(first.tolist(), (first + runs).tolist(), strict=True):
        letters[low:high] = _N
    text = _string(letters)
    return [text[a:b] for a, b in zip(starts.tolist(), (starts + lengths - lost).tolist(), strict=True)]


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
