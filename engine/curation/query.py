"""A barcode that somebody asks about: is it one, which way round, and what is wrong with it?

What is found goes with the answer to the question itself: a name for a sequence that is no COI is worth nothing,
however sure the model sounds. Whether it is COI is judged by its peptides. These are much the same in all animals (the
human barcode has 0.72 of them, like the median arthropod), so another animal is found by novelty and by
the distance to the nearest reference.
"""

from dataclasses import dataclass

from engine.curation.coi import HARMLESS, JUDGED, PROBLEMS, problems_of, read_frames
from engine.errors import UserError
from engine.signals import barcodes
from engine.signals.primers import primers_left

BROKEN = frozenset({"stop", "frameshift"})
MIN_NAMED = 100  # nucleotides; of shorter ones even the strand is often uncertain (`barcodes.orient`)
SENTENCES = {
    **PROBLEMS,
    "short": f"shorter than {MIN_NAMED} nucleotides",
    "strand": "given on the other strand; turned",
}
UNLIKE = "not the COI barcode of an animal, by its peptides: another gene, another part of COI, a bacterium"
UNJUDGED = f"too short to tell whether it is COI (under {JUDGED} nucleotides)"


@dataclass(frozen=True)
class BarcodeCheck:
    """What a barcode looks like before it is asked about."""

    sequence: str  # clean, on its coding strand
    strand: int  # that it was given on: +1 coding, -1 the other
    length: int  # nucleotides, N included
    n_share: float
    frame: int  # 0..2, of the coding strand
    stops: int  # stop codons (TAA, TAG) in that frame
    is_coi: bool | None  # None = too short to tell
    problems: tuple[str, ...]  # keys of `engine.curation.coi.PROBLEMS`
    primers: tuple[str, ...]  # of `engine.signals.primers`, left on its ends
    numt: bool | None  # its frame breaks, primers aside: likely a pseudogene, or misread; None = no COI, or too short

    @property
    def usable(self) -> bool:
        """Nothing is wrong that a name would suffer from."""
        return not set(self.problems) - HARMLESS

    def sentences(self) -> list[str]:
        """Return the problems as sentences for whoever asked."""
        known = [UNLIKE if name == "unlike" else SENTENCES[name] for name in self.problems]
        return known + ([UNJUDGED] if self.is_coi is None else [])


def check_barcode(raw: str) -> BarcodeCheck:
    """Check a barcode as it was given: any case, with gaps, on either strand.

    Raises:
        ValueError: for letters that are no nucleotides, or nothing but N and gaps.
    """
    given = barcodes.clean(raw)
    if not given:
        raise UserError("barcode", "no nucleotide but N and gaps", "A, C, G or T")
    sequence, strand = barcodes.orient(given)
    measured = {name: values[0].item() for name, values in read_frames([sequence]).items()}
    frame, stops = int(measured["frame"]), int(measured["stops"])
    found = [name for name in problems_of(sequence, strand, measured) if name != "short"]
    if len(sequence) < MIN_NAMED:
        found.append("short")
    judged = len(sequence) >= JUDGED
    primers, inside = primers_left(sequence)
    if primers and len(inside) >= JUDGED:
        measured = {name: values[0].item() for name, values in read_frames([inside]).items()}
    broken = bool(BROKEN & set(problems_of(inside, strand, measured)))
    return BarcodeCheck(
        sequence=sequence,
        strand=strand,
        length=len(sequence),
        n_share=sequence.count("N") / len(sequence),
        frame=frame,
        stops=stops,
        is_coi="unlike" not in found if judged else None,
        problems=tuple(found),
        primers=tuple(primers),
        numt=broken if judged and "unlike" not in found else None,
    )
