"""Primers that were left on a barcode: the usual ones for COI, looked for at both ends.

What a primer covers are the primer's own letters, not the specimen's.
"""

import numpy as np

from engine.signals.nucleotides import reverse_complement

PRIMERS = {  # name -> (strand that it reads, sequence as published, inosine as N)
    "LCO1490": (1, "GGTCAACAAATCATAAAGATATTGG"),
    "LepF1": (1, "ATTCAACCAATCATAAAGATATTGG"),
    "ZBJ-ArtF1c": (1, "AGATATTGGAACWTTATATTTTATTTTTGG"),
    "mlCOIintF": (1, "GGWACWGGWTGAACWGTWTAYCCYCC"),
    "BF2": (1, "GCHCCHGAYATRGCHTTYCC"),
    "M13F": (1, "TGTAAAACGACGGCCAGT"),
    "HCO2198": (-1, "TAAACTTCAGGGTGACCAAAAAATCA"),
    "LepR1": (-1, "TAAACTTCTGGATGTCCAAAAAATCA"),
    "jgHCO2198": (-1, "TANACYTCNGGRTGNCCRAARAAYCA"),
    "BR2": (-1, "TCDGGRTGNCCRAARAAYCA"),
    "M13R": (-1, "CAGGAAACAGCTATGAC"),
}
SLIDE = 12  # letters that may stand before a primer, or behind it at the other end
MISMATCHES = 2
_BASES = {"A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"}
_BASES |= {"B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"}
IUPAC_BITS = {letter: sum(1 << "ACGT".index(base) for base in bases) for letter, bases in _BASES.items()}
"""IUPAC letter -> one bit for each of A, C, G, T that it stands for."""
LETTER_BITS = np.zeros(256, dtype=np.uint8)
"""ASCII letter of a barcode -> its bit; N fits no primer letter."""
for _letter in "ACGT":
    LETTER_BITS[ord(_letter)] = IUPAC_BITS[_letter]
_WANTED = {name: np.array([IUPAC_BITS[one] for one in text], dtype=np.uint8) for name, (_, text) in PRIMERS.items()}


def primers_left(sequence: str) -> tuple[dict[str, int], str]:
    """Return the primers at the ends of a clean, oriented barcode, and the barcode without them.

    The first: name -> letters that go with it, what stands outside it included. Of several primers at one end the one
    that reaches farthest into the barcode counts.
    """
    found: dict[str, int] = {}
    cuts = {}
    for strand, oriented in ((1, sequence), (-1, reverse_complement(sequence))):
        ends = {name: _end(oriented, name) for name, (side, _) in PRIMERS.items() if side == strand}
        best = max(ends, key=lambda name: ends[name])
        cuts[strand] = ends[best]
        found |= {best: ends[best]} if ends[best] else {}
    return found, sequence[cuts[1] : max(cuts[1], len(sequence) - cuts[-1])]


def _end(sequence: str, name: str) -> int:
    """Return where a primer ends that stands at the beginning of a sequence, 0 = it does not."""
    wanted = _WANTED[name]
    letters = LETTER_BITS[np.frombuffer(sequence[: SLIDE + len(wanted)].encode("ascii"), dtype=np.uint8)]
    if len(letters) < len(wanted):
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(letters, len(wanted))
    misses = ((windows & wanted) == 0).sum(axis=1)
    best = int(misses.argmin())
    return best + len(wanted) if misses[best] <= MISMATCHES else 0
