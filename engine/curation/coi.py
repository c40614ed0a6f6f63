"""Barcodes that do not look like COI: length, N, reading frame, stop codons, strand. Works on batches of equal padding.

Legend: B barcodes of a batch, L positions, F = 3 frames of the coding strand; scores as in `barcodes.CODON_SCORES`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from engine.curation import Finding, SpecimenSet
from engine.curation.peptides import motif_share
from engine.signals import barcodes
from engine.signals.nucleotides import GENETIC_CODE, code_rows, codon_numbers, per_codon

MIN_LENGTH = 300  # nucleotides; shorter ones do not settle species well
MAX_LENGTH = 1600  # all of COI has about 1,540
MAX_N = 0.01  # share, as BOLD's barcode standard
MIN_MOTIFS = 0.12  # share of peptides that COI barcodes have, see `engine.curation.peptides`
JUDGED = 150  # nucleotides; shorter ones have too few peptides
SHIFT_GAIN = 250  # score that a change of frame must gain to be one: 995 of 1,000 of bold gain less than 91
_BATCH = 4096
_LETTERS_AT_ONCE = 1 << 22

PROBLEMS = {
    "short": f"shorter than {MIN_LENGTH} nucleotides",
    "long": f"longer than {MAX_LENGTH} nucleotides",
    "n": f"more than {MAX_N:.0%} N",
    "stop": "a stop codon (TAA, TAG) in its best reading frame: a pseudogene (NUMT), a misread base, a primer left on",
    "frameshift": "the reading frame changes within it: an insertion or deletion that is no multiple of 3",
    "unlike": "its peptides are not those of the COI barcode region: another gene, another part of COI, a bacterium",
    "strand": "stored on the other strand (training turns it, no harm)",
}
HARMLESS = frozenset({"strand"})
_SEVERE = ("unlike", "frameshift", "stop", "long", "n", "short", "strand")  # the order of the table


_SCORES = per_codon(barcodes.CODON_SCORES.astype(np.int16))
_IS_STOP = per_codon(np.array([acid == "*" for acid in GENETIC_CODE]))


def read_frames(sequences: Sequence[str]) -> dict[str, np.ndarray]:
    """Return what the reading frames of clean, oriented barcodes say, one value per barcode [B].

    Returns:
        motifs: share of peptides that COI has; frame: 0..2, of the highest score; score: mean codon score in it;
        stops: stop codons in it;
        gain: what the best single change of frame would add to the sum of scores (0 or more); at: where, nucleotide.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    width = -(-(int(lengths.max()) + 2) // 3) * 3
    codons = codon_numbers(code_rows(sequences, width + 2))
    scores = _SCORES[codons].reshape(len(sequences), -1, 3).astype(np.int32)  # [B, codon, F]
    stops = _IS_STOP[codons].reshape(len(sequences), -1, 3).sum(axis=1)
    summed = np.cumsum(scores, axis=1)
    total = summed[:, -1]
    frame = total.argmax(axis=1)
    row = np.arange(len(sequences))
    best = total[row, frame]
    two = summed.max(axis=2) + (total[:, None] - summed).max(axis=2)  # best start up to a codon + best end after it
    chosen = codons.reshape(len(sequences), -1, 3)[row, :, frame]
    return {
        "motifs": motif_share(chosen, (lengths - frame) // 3),
        "frame": frame,
        "score": best / np.maximum(lengths // 3, 1),
        "stops": stops[row, frame],
        "gain": two.max(axis=1) - best,
        "at": two.argmax(axis=1) * 3,
    }


def check_coi(specimens: SpecimenSet) -> Finding:
    """Name the barcodes with one of PROBLEMS, each with what was measured."""
    order = np.argsort([len(sequence) for sequence in specimens.unique], kind="stable")
    rows: dict[int, dict[str, object]] = {}
    sequences, strands = specimens.oriented
    for numbers in _batches(specimens.unique, order):
        read = read_frames([sequences[number] for number in numbers])
        for i, number in enumerate(numbers):
            sequence = sequences[number]
            measured = {name: values[i].item() for name, values in read.items()}
            problems = problems_of(sequence, int(strands[number]), measured)
            if problems:
                rows[number] = {
                    "problems": " ".join(problems),
                    "length": len(sequence),
                    "n_share": sequence.count("N") / len(sequence),
                    "stops": measured["stops"],
                    "motif_share": round(measured["motifs"], 3),
                    "codon_score": round(measured["score"], 2),
                    "shift_gain": measured["gain"],
                    "shift_at": measured["at"],
                }
    return _finding(specimens, rows)


def _batches(sequences: list[str], order: np.ndarray) -> Iterator[list[int]]:
    """Yield numbers of sequences of like length, about _LETTERS_AT_ONCE letters at a time.

    In `order` short ones are first.
    """
    with tqdm(total=len(order), desc="reading frames", unit="barcode", disable=None) as progress:
        start = 0
        while start < len(order):
            most = order[start : start + _BATCH]
            width = len(sequences[most[-1]])
            batch = most[: max(1, _LETTERS_AT_ONCE // width)].tolist()
            yield batch
            start += len(batch)
            progress.update(len(batch))


def problems_of(sequence: str, strand: int, measured: Mapping[str, float]) -> list[str]:
    """Return which of PROBLEMS a clean, oriented barcode has.

    Args:
        sequence: the barcode.
        strand: that it was given on, +1 or -1.
        measured: its values of `read_frames`.
    """
    length = len(sequence)
    unlike = measured["motifs"] < MIN_MOTIFS and length >= JUDGED
    shifted = not unlike and measured["gain"] > SHIFT_GAIN
    tests = {
        "short": length < MIN_LENGTH,
        "long": length > MAX_LENGTH,
        "n": sequence.count("N") > MAX_N * length,
        "stop": measured["stops"] > 0 and not unlike and not shifted,  # the others have stops for their own reason
        "frameshift": shifted,
        "unlike": unlike,
        "strand": strand < 0 and not unlike,
    }
    return [name for name, found in tests.items() if found]


def _finding(specimens: SpecimenSet, rows: dict[int, dict[str, object]]) -> Finding:
    bad = np.zeros(len(specimens.unique) + 1, dtype=bool)
    bad[list(rows)] = True
    where = np.flatnonzero(bad[specimens.place])
    labels = {rank: specimens.index[rank].take(pa.array(where)).to_pylist() for rank in ("family", "species")}
    table = [
        {"key": key, "family": family, "species": species, **rows[number]}
        for key, family, species, number in zip(
            specimens.keys(where),
            labels["family"],
            labels["species"],
            specimens.place[where].tolist(),
            strict=True,
        )
    ]
    table.sort(key=lambda row: (min(_SEVERE.index(one) for one in str(row["problems"]).split()), str(row["key"])))
    counts = Counter(problem for row in table for problem in str(row["problems"]).split())
    harmful = sum(bool(set(str(row["problems"]).split()) - HARMLESS) for row in table)
    facts = {name: counts[name] for name in PROBLEMS}
    meaning = "; ".join(f"{name}: {text}" for name, text in PROBLEMS.items()) + "."
    title = "Barcodes that do not look like COI"
    return Finding("coi", title, harmful, "specimens", meaning, pa.Table.from_pylist(table), facts)
