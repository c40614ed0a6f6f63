"""The parts of the COI barcode that short primers amplify, as metabarcoding and degraded museum samples give them.

A part is found by the primer whose site lies inside the barcode (IUPAC letters, few mismatches allowed) and the length
of the part, because the other primer's site often lies outside: mlCOIintF stands before Leray's part and jgHCO2198
behind the barcode's end; ZBJ-ArtR2c stands behind ZBJ's part and ZBJ-ArtF1c reaches beyond the barcode's start.
A barcode of the usual length whose primer site has too many mismatches is cut by position instead.

Legend: L nucleotides of a barcode, P letters of a primer.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.signals.primers import IUPAC_BITS, LETTER_BITS

FOLMER = 658  # nucleotides between the Folmer primers: positions count from its first
MAX_MISMATCHES = 6  # of a primer's 23 to 30 letters
SHORTEST = 0.9  # share of a part that a barcode must hold

_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


@dataclass(frozen=True)
class Amplicon:
    """A primer inside the barcode and the part beside it."""

    name: str
    primer: str  # as published, 5' to 3'
    forward: bool  # on the coding strand, before the part; else on the other strand, behind it
    length: int  # of the part, primers left out
    start: int  # of the part in the Folmer region, for barcodes without a recognised primer site

    @cached_property
    def site(self) -> np.ndarray:
        """uint8 [P], the primer's site on the coding strand: one bit for each letter that fits."""
        letters = self.primer if self.forward else self.primer.translate(_COMPLEMENT)[::-1]
        return np.array([IUPAC_BITS[letter] for letter in letters], dtype=np.uint8)

    def cut(self, barcode: str) -> str:
        """Return the amplified part of a clean barcode on its coding strand; "" where it is unknown or not there."""
        place = self.find(barcode)
        if place < 0 and abs(len(barcode) - FOLMER) <= 3:
            place = self.start
        if place < 0:
            return ""
        part = barcode[place : place + self.length]
        return part if len(part) >= SHORTEST * self.length else ""

    def find(self, barcode: str) -> int:
        """Return where the part begins by the best primer site (the first of equals).

        It is -1 without a site of at most MAX_MISMATCHES, or where the part would begin before the barcode.
        """
        bits = LETTER_BITS[np.frombuffer(barcode.encode("ascii"), dtype=np.uint8)]
        if len(bits) < len(self.site):
            return -1
        windows = np.lib.stride_tricks.sliding_window_view(bits, len(self.site))
        mismatches = ((windows & self.site) == 0).sum(axis=1)
        best = int(mismatches.argmin())
        if mismatches[best] > MAX_MISMATCHES:
            return -1
        return best + len(self.site) if self.forward else best - self.length


AMPLICONS = (
    Amplicon("Leray 313", "GGWACWGGWTGAACWGTWTAYCCYCC", True, 313, 345),  # mlCOIintF; Leray et al., 2013
    Amplicon("FwhF2-R2n 205", "GGDACWGGWTGAACWGTWTAYCCHCC", True, 205, 345),  # fwhF2; Vamos et al., 2017
    Amplicon("ZBJ 157", "WACTAATCAATTWCCAAATCCTCC", False, 157, 21),  # ZBJ-ArtR2c; Zeale et al., 2011
)
